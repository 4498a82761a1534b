// What ranks do wrong, and how their requests go on.

#include <gmock/gmock.h>

#include "tests/coordinator_server_faults_fixture.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;
using Kind = v1::CoordinatorMessage;

TEST_F(CoordinatorFaultsTest, TakesTokensOnceHoweverOftenTheyAreSent) {
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();

  rank->SendTokens(assign, 0, 3);
  rank->SendTokens(assign, 0, 3);
  rank->SendTokens(assign, 1, 4);
  rank->SendTokens(assign, 4, 2, v1::FINISH_REASON_STOP);
  stream.ReadAll();

  EXPECT_EQ(stream.tokens, Count(0, 6));
  EXPECT_EQ(stream.text, "0 1 2 3 4 5 ");
}

TEST_F(CoordinatorFaultsTest, AsksForTokensThatAreMissing) {
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();

  rank->SendTokens(assign, 0, 2);
  rank->SendTokens(assign, 4, 2);
  const auto resend = rank->Next(Kind::kResend);

  ASSERT_TRUE(resend.has_value());
  EXPECT_EQ(resend->resend().next_offset(), 2u);
  rank->SendTokens(assign, 2, 4, v1::FINISH_REASON_STOP);
  stream.ReadAll();
  EXPECT_EQ(stream.tokens, Count(0, 6));
}

TEST_F(CoordinatorFaultsTest, ARankThatComesBackGoesOnWhereItWas) {
  Start();
  auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();
  rank->SendTokens(assign, 0, 2);
  rank->Next(Kind::kAck);
  rank->Break();
  rank->Ended();

  rank = NewRank();
  const v1::Accepted accepted = rank->Attach(Holding(assign, 2, 5));

  ASSERT_EQ(accepted.resume_size(), 1);
  EXPECT_FALSE(accepted.resume(0).drop());
  EXPECT_EQ(accepted.resume(0).next_offset(), 2u);
  rank->SendTokens(assign, 2, 3, v1::FINISH_REASON_STOP);
  stream.ReadAll();
  EXPECT_EQ(stream.tokens, Count(0, 5));
}

TEST_F(CoordinatorFaultsTest, AnotherRankGoesOnFromTheTokensThatWereKept) {
  Start();
  auto first = AttachedRank(0);
  const auto second = AttachedRank(1);
  Stream stream(*this, Request());
  const v1::Assign assign = first->NextAssign();
  first->SendTokens(assign, 0, 2);
  first->Next(Kind::kAck);

  first->Goodbye(false);
  const v1::Assign again = second->NextAssign();

  EXPECT_EQ(again.request_id(), assign.request_id());
  EXPECT_EQ(again.attempt(), 2u);
  EXPECT_THAT(again.prefix(), SizeIs(2));
  EXPECT_EQ(again.params().seed(), assign.params().seed());
  second->SendTokens(again, 2, 2, v1::FINISH_REASON_LENGTH);
  stream.ReadAll();
  EXPECT_EQ(stream.tokens, Count(0, 4));
}

TEST_F(CoordinatorFaultsTest, TokensOfAnOlderAttemptAreFencedOff) {
  Start();
  auto first = AttachedRank(0);
  const auto second = AttachedRank(1);
  Stream stream(*this, Request());
  const v1::Assign old = first->NextAssign();
  v1::RankMessage release;
  release.mutable_release()->add_requests()->set_request_id(old.request_id());
  release.mutable_release()->mutable_requests(0)->set_attempt(old.attempt());
  v1::RankMessage busy;
  busy.mutable_heartbeat()->set_draining(true);
  first->Send(busy);
  first->Send(release);
  const v1::Assign assign = second->NextAssign();

  v1::RankMessage stale;
  v1::TokenDelta& delta = *stale.mutable_tokens()->add_deltas();
  delta = FakeRank::Delta(old, 0, 1);
  delta.set_token_ids(0, 999);
  first->Send(stale);
  const auto cancel = first->Next(Kind::kCancel);
  second->SendTokens(assign, 0, 2, v1::FINISH_REASON_STOP);
  stream.ReadAll();

  ASSERT_TRUE(cancel.has_value());
  EXPECT_EQ(cancel->cancel().attempt(), old.attempt());
  EXPECT_EQ(stream.tokens, Count(0, 2));
}

TEST_F(CoordinatorFaultsTest, ARequestThatKillsItsRankThreeTimesIsPoison) {
  Start();
  Stream stream(*this, Request());
  for (uint64_t incarnation = 1; incarnation <= 3; ++incarnation) {
    const auto rank = Successor(incarnation);
    ASSERT_NE(rank, nullptr);
    EXPECT_EQ(rank->NextAssign().attempt(), incarnation);
    rank->Goodbye(false);
    rank->Ended();
  }
  stream.ReadAll();

  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(stream.status.error_message(), HasSubstr("poison"));
  EXPECT_EQ(stream.finish.reason(), v1::FINISH_REASON_ERROR);
  EXPECT_EQ(Get(stream.id).state(), v1::REQUEST_STATE_FAILED);
}

TEST_F(CoordinatorFaultsTest, ACoordinatorThatRestartsFindsItsRunningRanks) {
  options_.hub.queue.reattach = kTestPatience;
  Start();
  auto rank = AttachedRank();
  const std::string id = Submit().response.request_id();
  const v1::Assign assign = rank->NextAssign();
  rank->SendTokens(assign, 0, 2);
  rank->Next(Kind::kAck);
  Stop();
  Start();
  const auto stranger = AttachedRank(1);

  rank = NewRank();
  const v1::Accepted accepted = rank->Attach(Holding(assign, 2, 4));
  ASSERT_EQ(accepted.resume_size(), 1);
  EXPECT_FALSE(accepted.resume(0).drop());
  rank->SendTokens(assign, 2, 2, v1::FINISH_REASON_STOP);
  Stream stream(*this, id, 1);
  stream.ReadAll();

  EXPECT_EQ(stream.tokens, Count(1, 3));
  EXPECT_EQ(Get(id).attempt(), 1u) << "it was given to the other rank";
}

TEST_F(CoordinatorFaultsTest,
       NothingIsAssignedAnewBeforeTheReattachTimeIsOver) {
  options_.hub.queue.reattach = absl::Milliseconds(400);
  Start();
  auto rank = AttachedRank();
  Submit();
  rank->NextAssign();
  const auto other = AttachedRank(1);

  const absl::Time broken = absl::Now();
  rank->Break();
  const v1::Assign again = other->NextAssign();

  EXPECT_EQ(again.attempt(), 2u);
  EXPECT_GE(absl::Now() - broken, absl::Milliseconds(350));
}

TEST_F(CoordinatorFaultsTest, ADrainLetsARankComeBackWithWhatItRuns) {
  options_.hub.queue.reattach = kTestPatience;
  Start();
  auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();
  coordinator_->Drain();
  rank->Break();
  rank->Ended();

  rank = NewRank();
  ASSERT_EQ(rank->Attach(Holding(assign, 0, 2)).resume_size(), 1);
  EXPECT_TRUE(rank->Next(Kind::kDrain).has_value());
  rank->SendTokens(assign, 0, 2, v1::FINISH_REASON_STOP);
  stream.ReadAll();

  EXPECT_EQ(stream.tokens, Count(0, 2));
  EXPECT_TRUE(coordinator_->WaitDrained(kTestPatience));
}

TEST_F(CoordinatorFaultsTest, AnOddRankIsNamed) {
  Start();
  const auto rank = AttachedRank(0);
  const auto odd = NewRank();
  v1::Register registration = FakeRank::Registration(1, 2);
  registration.mutable_model()->set_numerics_id("n2");
  odd->Attach(registration);

  const grpc::Status status = odd->Ended();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("rank 1"));
  EXPECT_THAT(status.error_message(), HasSubstr("n2"));
}

TEST_F(CoordinatorFaultsTest, ASecondProcessOfALivingRankIsRefused) {
  Start();
  const auto rank = AttachedRank(0, 1);
  const auto twin = NewRank();
  twin->Attach(FakeRank::Registration(0, 2));

  EXPECT_EQ(twin->Ended().error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(CoordinatorFaultsTest, ARankThatSpeaksOutOfTurnIsRefused) {
  Start();
  const auto rank = NewRank();
  rank->Send([] {
    v1::RankMessage message;
    message.mutable_heartbeat();
    return message;
  }());
  EXPECT_EQ(rank->Ended().error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  const auto old = NewRank();
  v1::Register registration = FakeRank::Registration();
  registration.set_protocol_version(2);
  old->Attach(registration);
  EXPECT_EQ(old->Ended().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

}  // namespace
}  // namespace portolan
