#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/agent/agent_protocol.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

AgentProtocol::Options Options() {
  AgentProtocol::Options options;
  options.job = "job";
  options.rank = 1;
  options.world_size = 2;
  options.incarnation = 77;
  options.capacity.set_max_sequences(4);
  return options;
}

v1::CoordinatorMessage Accept(uint32_t max_held = 100) {
  v1::CoordinatorMessage message;
  message.mutable_accepted()->set_heartbeat_ms(1000);
  message.mutable_accepted()->set_max_held_tokens(max_held);
  return message;
}

v1::CoordinatorMessage Assign(const std::string& id, uint32_t attempt = 1,
                              uint64_t serial = 1,
                              std::vector<int32_t> prefix = {}) {
  v1::CoordinatorMessage message;
  v1::Assign& assign = *message.mutable_assign();
  assign.set_serial(serial);
  assign.set_request_id(id);
  assign.set_attempt(attempt);
  assign.set_text("prompt of " + id);
  assign.mutable_prefix()->Add(prefix.begin(), prefix.end());
  return message;
}

v1::CoordinatorMessage Ack(const std::string& id, uint32_t next_offset,
                           bool finished = false, uint32_t attempt = 1) {
  v1::CoordinatorMessage message;
  v1::Durable& durable = *message.mutable_ack()->add_durable();
  durable.set_request_id(id);
  durable.set_attempt(attempt);
  durable.set_next_offset(next_offset);
  durable.set_finished(finished);
  return message;
}

v1::Finish Stop() {
  v1::Finish finish;
  finish.set_reason(v1::FINISH_REASON_STOP);
  return finish;
}

class AgentProtocolTest : public ::testing::Test {
 protected:
  AgentProtocolTest() : agent_(Options()) {}

  void Attach(uint32_t max_held = 100) {
    agent_.Connect(now_);
    Take(Accept(max_held));
    AllMessages();  // the first heartbeat
  }
  void Take(const v1::CoordinatorMessage& message) {
    const absl::Status status = agent_.Receive(message, now_);
    EXPECT_TRUE(status.ok()) << status;
  }
  // Assigns a request and hands it to the engine; returns the engine's id.
  int64_t Start(const v1::CoordinatorMessage& assign) {
    Take(assign);
    const AgentProtocol::EngineWork work = agent_.TakeEngineWork(now_);
    EXPECT_THAT(work.assign, SizeIs(1));
    return work.assign.empty() ? 0 : work.assign.front().id;
  }
  void Generate(int64_t id, int32_t first, int count) {
    for (int32_t token = first; token < first + count; ++token) {
      agent_.TakeToken(id, token, std::to_string(token), nullptr);
    }
  }
  std::vector<v1::RankMessage> AllMessages() {
    std::vector<v1::RankMessage> messages;
    while (auto message = agent_.NextMessage(now_)) {
      messages.push_back(*std::move(message));
    }
    return messages;
  }
  // The deltas among all that is to be sent now.
  std::vector<v1::TokenDelta> Deltas() {
    std::vector<v1::TokenDelta> deltas;
    for (const v1::RankMessage& message : AllMessages()) {
      for (const v1::TokenDelta& delta : message.tokens().deltas()) {
        deltas.push_back(delta);
      }
    }
    return deltas;
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  AgentProtocol agent_;
};

TEST_F(AgentProtocolTest, RegistersFirstAndSaysNothingUntilAccepted) {
  const v1::RankMessage first = agent_.Connect(now_);

  EXPECT_EQ(first.register_().protocol_version(), 1u);
  EXPECT_EQ(first.register_().incarnation(), 77u);
  EXPECT_THAT(first.register_().running(), IsEmpty());
  EXPECT_THAT(AllMessages(), IsEmpty());
  Take(Accept());
  EXPECT_THAT(AllMessages(), SizeIs(1));  // a heartbeat
}

TEST_F(AgentProtocolTest, AnythingBeforeAcceptedIsAnError) {
  agent_.Connect(now_);

  EXPECT_TRUE(absl::IsInvalidArgument(agent_.Receive(Assign("a"), now_)));
  Take(Accept());
  EXPECT_TRUE(absl::IsInvalidArgument(agent_.Receive(Accept(), now_)));
}

TEST_F(AgentProtocolTest, TokensOfAStepLeaveInOneMessageWithOffsetsAndTexts) {
  Attach();
  const int64_t a = Start(Assign("a"));
  const int64_t b = Start(Assign("b", 1, 2, {8, 9}));
  Generate(a, 10, 2);
  Generate(b, 20, 1);

  const std::vector<v1::TokenDelta> deltas = Deltas();

  ASSERT_THAT(deltas, SizeIs(2));
  EXPECT_EQ(deltas[0].request_id(), "a");
  EXPECT_EQ(deltas[0].offset(), 0u);
  EXPECT_THAT(deltas[0].token_ids(), ElementsAre(10, 11));
  EXPECT_THAT(deltas[0].texts(), ElementsAre("10", "11"));
  EXPECT_EQ(deltas[1].offset(), 2u);  // behind the prefix
  EXPECT_THAT(deltas[1].token_ids(), ElementsAre(20));
  EXPECT_THAT(Deltas(), IsEmpty());
}

TEST_F(AgentProtocolTest, HoldsTokensUntilTheyAreAcknowledged) {
  Attach();
  const int64_t a = Start(Assign("a"));
  Generate(a, 10, 5);
  Deltas();
  EXPECT_EQ(agent_.num_held_tokens(), 5);

  Take(Ack("a", 3));
  EXPECT_EQ(agent_.num_held_tokens(), 2);
  agent_.TakeEnd(a, Stop());
  Deltas();
  Take(Ack("a", 5, /*finished=*/true));

  EXPECT_EQ(agent_.num_held_tokens(), 0);
  EXPECT_EQ(agent_.num_requests(), 0u);
}

TEST_F(AgentProtocolTest, PausesWhenTheHeldTokensAreFullAndGoesOnAfterAnAck) {
  Attach(/*max_held=*/6);
  const int64_t a = Start(Assign("a"));
  const int64_t b = Start(Assign("b", 1, 2));
  Generate(a, 10, 3);
  Generate(b, 20, 2);
  EXPECT_TRUE(agent_.paused());  // a step would make it seven

  Deltas();
  EXPECT_TRUE(agent_.paused());
  Take(Ack("a", 1));
  EXPECT_FALSE(agent_.paused());
}

TEST_F(AgentProtocolTest, APausedRankKeepsEveryTokenWhileItsStreamIsBroken) {
  Attach(/*max_held=*/4);
  const int64_t a = Start(Assign("a"));
  agent_.Disconnect();
  int32_t token = 0;
  while (!agent_.paused()) Generate(a, token++, 1);

  agent_.Connect(now_);
  v1::CoordinatorMessage accepted = Accept(4);
  v1::Resume& resume = *accepted.mutable_accepted()->add_resume();
  resume.set_request_id("a");
  resume.set_attempt(1);
  Take(accepted);

  const std::vector<v1::TokenDelta> deltas = Deltas();
  ASSERT_THAT(deltas, SizeIs(1));
  EXPECT_THAT(deltas[0].token_ids(), ElementsAre(0, 1, 2, 3));
}

TEST_F(AgentProtocolTest, RegistersAgainWithWhatItHoldsAndGoesOnWhereAsked) {
  Attach();
  const int64_t a = Start(Assign("a"));
  Generate(a, 10, 5);
  Deltas();
  Take(Ack("a", 2));
  agent_.Disconnect();
  Generate(a, 15, 1);

  const v1::RankMessage again = agent_.Connect(now_);

  ASSERT_THAT(again.register_().running(), SizeIs(1));
  EXPECT_EQ(again.register_().incarnation(), 77u);
  EXPECT_EQ(again.register_().running(0).request_id(), "a");
  EXPECT_EQ(again.register_().running(0).held_from(), 2u);
  EXPECT_EQ(again.register_().running(0).next_offset(), 6u);
  v1::CoordinatorMessage accepted = Accept();
  v1::Resume& resume = *accepted.mutable_accepted()->add_resume();
  resume.set_request_id("a");
  resume.set_attempt(1);
  resume.set_next_offset(4);  // more was kept than acknowledged
  Take(accepted);
  const std::vector<v1::TokenDelta> deltas = Deltas();
  ASSERT_THAT(deltas, SizeIs(1));
  EXPECT_EQ(deltas[0].offset(), 4u);
  EXPECT_THAT(deltas[0].token_ids(), ElementsAre(14, 15));
}

TEST_F(AgentProtocolTest, SendsAnUnacknowledgedEndAgainAfterAReconnect) {
  Attach();
  const int64_t a = Start(Assign("a"));
  Generate(a, 10, 1);
  agent_.TakeEnd(a, Stop());
  Deltas();
  agent_.Disconnect();
  agent_.Connect(now_);
  v1::CoordinatorMessage accepted = Accept();
  v1::Resume& resume = *accepted.mutable_accepted()->add_resume();
  resume.set_request_id("a");
  resume.set_attempt(1);
  resume.set_next_offset(1);
  Take(accepted);

  const std::vector<v1::TokenDelta> deltas = Deltas();

  ASSERT_THAT(deltas, SizeIs(1));
  EXPECT_EQ(deltas[0].offset(), 1u);
  EXPECT_THAT(deltas[0].token_ids(), IsEmpty());
  EXPECT_EQ(deltas[0].finish().usage().completion_tokens(), 1u);
}

TEST_F(AgentProtocolTest, DropsWhatTheCoordinatorGaveToAnotherRank) {
  Attach();
  const int64_t a = Start(Assign("a"));
  Generate(a, 10, 1);
  agent_.Disconnect();
  agent_.Connect(now_);
  v1::CoordinatorMessage accepted = Accept();
  v1::Resume& resume = *accepted.mutable_accepted()->add_resume();
  resume.set_request_id("a");
  resume.set_attempt(1);
  resume.set_drop(true);
  Take(accepted);

  EXPECT_THAT(agent_.TakeEngineWork(now_).cancel, ElementsAre(a));
  EXPECT_THAT(Deltas(), IsEmpty());
  EXPECT_EQ(agent_.num_requests(), 0u);
  EXPECT_EQ(agent_.num_held_tokens(), 0);
}

TEST_F(AgentProtocolTest, ANewAttemptTakesThePlaceOfTheOldOne) {
  Attach();
  const int64_t old_id = Start(Assign("a"));
  Generate(old_id, 10, 1);
  Take(Assign("a", 2, 2));

  const AgentProtocol::EngineWork work = agent_.TakeEngineWork(now_);

  EXPECT_THAT(work.cancel, ElementsAre(old_id));
  ASSERT_THAT(work.assign, SizeIs(1));
  Generate(old_id, 11, 1);  // of a step that was under way
  EXPECT_THAT(Deltas(), IsEmpty());
  Generate(work.assign[0].id, 10, 1);
  ASSERT_THAT(agent_.num_requests(), 1u);
  EXPECT_EQ(Deltas()[0].attempt(), 2u);
}

TEST_F(AgentProtocolTest, CancelAndAckOfAnOldAttemptChangeNothing) {
  Attach();
  const int64_t a = Start(Assign("a", 2));
  Generate(a, 10, 2);
  v1::CoordinatorMessage cancel;
  cancel.mutable_cancel()->set_request_id("a");
  cancel.mutable_cancel()->set_attempt(1);

  Take(cancel);
  Take(Ack("a", 2, /*finished=*/true, /*attempt=*/1));

  EXPECT_THAT(agent_.TakeEngineWork(now_).cancel, IsEmpty());
  EXPECT_EQ(agent_.num_held_tokens(), 2);
}

TEST_F(AgentProtocolTest, ACancelledRequestNeedsNoAnswer) {
  Attach();
  const int64_t a = Start(Assign("a"));
  v1::CoordinatorMessage cancel;
  cancel.mutable_cancel()->set_request_id("a");
  cancel.mutable_cancel()->set_attempt(1);

  Take(cancel);

  EXPECT_THAT(agent_.TakeEngineWork(now_).cancel, ElementsAre(a));
  agent_.TakeEnd(a, Stop());
  EXPECT_THAT(Deltas(), IsEmpty());
}

TEST_F(AgentProtocolTest, SendsAgainWhatIsMissing) {
  Attach();
  const int64_t a = Start(Assign("a"));
  Generate(a, 10, 4);
  Deltas();
  v1::CoordinatorMessage resend;
  resend.mutable_resend()->set_request_id("a");
  resend.mutable_resend()->set_attempt(1);
  resend.mutable_resend()->set_next_offset(1);

  Take(resend);

  const std::vector<v1::TokenDelta> deltas = Deltas();
  ASSERT_THAT(deltas, SizeIs(1));
  EXPECT_EQ(deltas[0].offset(), 1u);
  EXPECT_THAT(deltas[0].token_ids(), ElementsAre(11, 12, 13));
}

TEST_F(AgentProtocolTest, GivesARequestBackWhoseMissingTokensAreGone) {
  Attach();
  const int64_t a = Start(Assign("a"));
  Generate(a, 10, 4);
  Deltas();
  Take(Ack("a", 3));
  v1::CoordinatorMessage resend;
  resend.mutable_resend()->set_request_id("a");
  resend.mutable_resend()->set_attempt(1);
  resend.mutable_resend()->set_next_offset(1);

  Take(resend);

  const std::vector<v1::RankMessage> messages = AllMessages();
  ASSERT_THAT(messages, SizeIs(1));
  ASSERT_THAT(messages[0].release().requests(), SizeIs(1));
  EXPECT_THAT(agent_.TakeEngineWork(now_).cancel, ElementsAre(a));
}

TEST_F(AgentProtocolTest, EndsARequestWhoseTimeIsOverAndStopsItInTheEngine) {
  Attach();
  v1::CoordinatorMessage assign = Assign("a");
  assign.mutable_assign()->set_timeout_ms(50);
  const int64_t a = Start(assign);
  Generate(a, 10, 1);
  EXPECT_EQ(agent_.next_deadline(), now_ + absl::Milliseconds(50));
  EXPECT_FALSE(agent_.HasEngineWork(now_));

  now_ += absl::Milliseconds(50);

  EXPECT_TRUE(agent_.HasEngineWork(now_));
  EXPECT_THAT(agent_.TakeEngineWork(now_).cancel, ElementsAre(a));
  const std::vector<v1::TokenDelta> deltas = Deltas();
  ASSERT_THAT(deltas, SizeIs(1));
  EXPECT_THAT(deltas[0].token_ids(), ElementsAre(10));
  EXPECT_EQ(deltas[0].finish().error().code(), 4u);
  EXPECT_EQ(agent_.next_deadline(), absl::InfiniteFuture());
}

TEST_F(AgentProtocolTest, ARequestThatIsInNoStepInTimeIsRefused) {
  Attach();
  v1::CoordinatorMessage assign = Assign("a");
  assign.mutable_assign()->set_start_within_ms(500);
  const int64_t id = Start(assign);
  now_ += absl::Milliseconds(499);
  EXPECT_FALSE(agent_.HasEngineWork(now_));
  EXPECT_EQ(agent_.next_deadline(), now_ + absl::Milliseconds(1));

  now_ += absl::Milliseconds(1);
  EXPECT_TRUE(agent_.HasEngineWork(now_));
  EXPECT_THAT(agent_.TakeEngineWork(now_).overdue, ElementsAre(id));
  agent_.EndUnstarted(id);

  const std::vector<v1::TokenDelta> deltas = Deltas();
  ASSERT_THAT(deltas, SizeIs(1));
  EXPECT_EQ(deltas[0].finish().error().code(), 8u);
  EXPECT_FALSE(agent_.HasEngineWork(now_ + absl::Hours(1)));
}

TEST_F(AgentProtocolTest, ARequestThatStartedInTimeGoesOn) {
  Attach();
  v1::CoordinatorMessage assign = Assign("a");
  assign.mutable_assign()->set_start_within_ms(500);
  const int64_t id = Start(assign);
  now_ += absl::Milliseconds(500);

  EXPECT_THAT(agent_.TakeEngineWork(now_).overdue, ElementsAre(id));
  agent_.Started(id);

  EXPECT_THAT(agent_.TakeEngineWork(now_).overdue, IsEmpty());
  EXPECT_EQ(agent_.next_deadline(), absl::InfiniteFuture());
  EXPECT_THAT(Deltas(), IsEmpty());
}

TEST_F(AgentProtocolTest, ARequestThatTheEngineNeverSawIsRefusedInTimeToo) {
  Attach();
  v1::CoordinatorMessage assign = Assign("a");
  assign.mutable_assign()->set_start_within_ms(500);
  Take(assign);
  now_ += absl::Milliseconds(500);

  const AgentProtocol::EngineWork work = agent_.TakeEngineWork(now_);

  EXPECT_THAT(work.assign, IsEmpty());
  EXPECT_THAT(work.overdue, IsEmpty());
  const std::vector<v1::TokenDelta> deltas = Deltas();
  ASSERT_THAT(deltas, SizeIs(1));
  EXPECT_EQ(deltas[0].finish().error().code(), 8u);
}

TEST_F(AgentProtocolTest, HeartbeatsComeTwiceInThePeriodAndWhenTheRoomGrew) {
  Attach();
  EXPECT_THAT(AllMessages(), IsEmpty());
  now_ = agent_.next_message_due();
  EXPECT_EQ(now_, absl::FromUnixSeconds(1000) + absl::Milliseconds(500));
  EXPECT_THAT(AllMessages(), SizeIs(1));

  agent_.SetRoom({.sequences = 2, .kv_tokens = 64});
  const std::vector<v1::RankMessage> grown = AllMessages();
  agent_.SetRoom({.sequences = 1, .kv_tokens = 32});

  ASSERT_THAT(grown, SizeIs(1));
  EXPECT_EQ(grown[0].heartbeat().free_sequences(), 2u);
  EXPECT_THAT(AllMessages(), IsEmpty());
}

TEST_F(AgentProtocolTest, AHeartbeatSaysWhichAssignmentsItsRoomCounts) {
  Attach();
  Start(Assign("a", 1, 5));
  agent_.SetRoom({.sequences = 3, .kv_tokens = 64});
  Take(Assign("b", 1, 6));  // not with the engine yet

  const std::vector<v1::RankMessage> messages = AllMessages();

  ASSERT_THAT(messages, SizeIs(1));
  EXPECT_EQ(messages[0].heartbeat().last_assign_serial(), 5u);
}

TEST_F(AgentProtocolTest, ADrainingRankGivesNewRequestsBackAndKeepsTheOld) {
  Attach();
  Start(Assign("a"));
  agent_.Drain();
  Take(Assign("b", 1, 2));

  const std::vector<v1::RankMessage> messages = AllMessages();

  ASSERT_THAT(messages, SizeIs(2));
  ASSERT_THAT(messages[0].release().requests(), SizeIs(1));
  EXPECT_EQ(messages[0].release().requests(0).request_id(), "b");
  EXPECT_TRUE(messages[1].heartbeat().draining());
  EXPECT_EQ(agent_.num_requests(), 1u);
  EXPECT_EQ(agent_.num_released(), 0);
}

TEST_F(AgentProtocolTest, AtTheEndOfTheGraceItReleasesWhatHasNotEnded) {
  Attach();
  const int64_t a = Start(Assign("a"));
  const int64_t b = Start(Assign("b", 1, 2));
  Generate(a, 10, 1);
  agent_.TakeEnd(a, Stop());
  Generate(b, 20, 1);
  Deltas();

  agent_.ReleaseAll();
  agent_.SayGoodbye(true, "");

  EXPECT_THAT(agent_.TakeEngineWork(now_).cancel, ElementsAre(b));
  const std::vector<v1::RankMessage> messages = AllMessages();
  ASSERT_THAT(messages, SizeIs(2));
  ASSERT_THAT(messages[0].release().requests(), SizeIs(1));
  EXPECT_EQ(messages[0].release().requests(0).request_id(), "b");
  EXPECT_TRUE(messages[1].goodbye().clean());
  EXPECT_EQ(agent_.num_requests(), 1u);  // the end of a, until it is kept
  EXPECT_EQ(agent_.num_released(), 1);
}

TEST_F(AgentProtocolTest, ManyHeldTokensTravelInSeveralMessages) {
  Attach(/*max_held=*/10'000);
  const int64_t a = Start(Assign("a"));
  Generate(a, 0, 5000);
  agent_.TakeEnd(a, Stop());

  const std::vector<v1::TokenDelta> deltas = Deltas();

  ASSERT_THAT(deltas, SizeIs(3));
  uint32_t next = 0;
  for (const v1::TokenDelta& delta : deltas) {
    EXPECT_EQ(delta.offset(), next);
    next += static_cast<uint32_t>(delta.token_ids_size());
  }
  EXPECT_EQ(next, 5000u);
  EXPECT_FALSE(deltas[1].has_finish());
  EXPECT_TRUE(deltas[2].has_finish());
}

}  // namespace
}  // namespace portolan
