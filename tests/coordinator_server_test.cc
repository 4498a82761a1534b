#include <gmock/gmock.h>

#include "tests/coordinator_server_fixture.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_F(CoordinatorTest, StreamsWhatARankGeneratesToTheClient) {
  Start();
  const auto rank = AttachedRank();

  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();
  rank->SendTokens(assign, 0, 2);
  rank->SendTokens(assign, 2, 3, v1::FINISH_REASON_STOP);
  stream.ReadAll();

  EXPECT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.tokens, Count(0, 5));
  EXPECT_EQ(stream.text, "0 1 2 3 4 ");
  EXPECT_EQ(stream.finish.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(stream.finish.usage().completion_tokens(), 5u);
  EXPECT_EQ(stream.finish.usage().prompt_tokens(), 3u);
}

TEST_F(CoordinatorTest, TellsTheRankEveryParameterInForce) {
  Start();
  const auto rank = NewRank();
  v1::Register registration = FakeRank::Registration();
  registration.mutable_defaults()->set_top_k(7);
  registration.mutable_defaults()->set_temperature(0.5);
  rank->Attach(registration);
  v1::GenerateRequest request = Request();
  request.mutable_params()->set_temperature(0.25);

  const auto submitted = Submit(request);
  const v1::Assign assign = rank->NextAssign();

  EXPECT_EQ(assign.request_id(), submitted.response.request_id());
  EXPECT_EQ(assign.attempt(), 1u);
  EXPECT_EQ(assign.params().temperature(), 0.25);
  EXPECT_EQ(assign.params().top_k(), 7u);
  EXPECT_EQ(assign.params().top_p(), 1);
  EXPECT_EQ(assign.params().max_tokens(), 8u);
  EXPECT_EQ(assign.params().seed(), submitted.response.seed());
}

TEST_F(CoordinatorTest, AcknowledgesTokensThatAreKept) {
  Start();
  const auto rank = AttachedRank();
  Submit();
  const v1::Assign assign = rank->NextAssign();

  rank->SendTokens(assign, 0, 3);
  const auto ack = rank->Next(v1::CoordinatorMessage::kAck);

  ASSERT_TRUE(ack.has_value());
  EXPECT_EQ(ack->ack().durable(0).next_offset(), 3u);
  EXPECT_FALSE(ack->ack().durable(0).finished());
}

TEST_F(CoordinatorTest, WatchGivesEachTokenOnceFromAnyOffset) {
  Start();
  const auto rank = AttachedRank();
  const std::string id = Submit().response.request_id();
  const v1::Assign assign = rank->NextAssign();
  rank->SendTokens(assign, 0, 3);
  rank->Next(v1::CoordinatorMessage::kAck);

  Stream early(*this, id, 2);
  early.ReadUntil(1);
  rank->SendTokens(assign, 3, 2, v1::FINISH_REASON_LENGTH);
  early.ReadAll();
  Stream late(*this, id, 4);
  late.ReadAll();

  EXPECT_EQ(early.tokens, Count(2, 3));
  EXPECT_EQ(late.tokens, Count(4, 1));
  EXPECT_EQ(late.text, "4 ");
  EXPECT_EQ(late.finish.reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(CoordinatorTest, AskedAgainWithTheSameKeyItIsTheSameRequest) {
  Start();

  const auto first = Submit(Request("key"));
  const auto second = Submit(Request("key"));
  v1::GenerateRequest other = Request("key");
  other.mutable_params()->set_max_tokens(9);
  const auto third = Submit(other);

  EXPECT_FALSE(first.response.existed());
  EXPECT_TRUE(second.response.existed());
  EXPECT_EQ(first.response.request_id(), second.response.request_id());
  EXPECT_EQ(first.response.seed(), second.response.seed());
  EXPECT_EQ(third.status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(CoordinatorTest, WithoutAModelNamedTheOneThatRanksServeIsMeant) {
  v1::Register of_another = FakeRank::Registration();
  of_another.set_job("another");
  of_another.mutable_model()->set_name("another");
  of_another.mutable_model()->set_fingerprint("beef");
  Start();
  {
    auto gone = NewRank();
    gone->Attach(of_another);
  }
  Stop();
  Start();
  auto rank = AttachedRank();

  EXPECT_TRUE(Submit().status.ok());
  EXPECT_TRUE(rank->Next(v1::CoordinatorMessage::kAssign));

  auto another = NewRank();
  another->Attach(of_another);
  const auto unclear = Submit();
  EXPECT_EQ(unclear.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(unclear.status.error_message(),
              testing::HasSubstr("there are several"));
}

TEST_F(CoordinatorTest, ASubmittedRequestOutlivesTheDeadlineOfItsCall) {
  Start();
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(2)));
  v1::SubmitResponse lasting;
  ASSERT_TRUE(client_->Submit(&context, Request(), &lasting).ok());

  v1::GenerateRequest limited = Request();
  limited.mutable_timeout()->set_seconds(3);
  Stream ends_later(*this, Submit(limited).response.request_id(), 0);
  while (ends_later.Read()) {
  }

  EXPECT_EQ(ends_later.status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(Get(lasting.request_id()).state(), v1::REQUEST_STATE_QUEUED);
}

TEST_F(CoordinatorTest, ARestartLosesNothing) {
  Start();
  std::string done, waiting;
  {
    const auto rank = AttachedRank();
    done = Submit().response.request_id();
    rank->SendTokens(rank->NextAssign(), 0, 5, v1::FINISH_REASON_STOP);
    rank->Next(v1::CoordinatorMessage::kAck);
    rank->Goodbye(true);
    rank->Ended();
    waiting = Submit(Request("k")).response.request_id();
  }
  Stop();

  Start();
  EXPECT_EQ(Get(done).state(), v1::REQUEST_STATE_DONE);
  EXPECT_EQ(Get(done).text(), "0 1 2 3 4 ");
  EXPECT_EQ(Get(waiting).state(), v1::REQUEST_STATE_QUEUED);
  EXPECT_TRUE(Submit(Request("k")).response.existed());
  const v1::Stats stats = Stats();
  EXPECT_EQ(stats.accepted(), 2u);
  EXPECT_EQ(stats.done(), 1u);
  EXPECT_EQ(stats.tokens(), 5u);
  EXPECT_EQ(stats.queued(), 1u);
  const auto rank = AttachedRank(0, 2);
  EXPECT_EQ(rank->NextAssign().request_id(), waiting);
}

TEST_F(CoordinatorTest, ListsRequestsNewestFirstInPages) {
  Start();
  std::vector<std::string> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(Submit().response.request_id());

  grpc::ClientContext first_context, second_context;
  v1::ListRequest request;
  request.set_page_size(2);
  v1::ListResponse first, second;
  ASSERT_TRUE(client_->List(&first_context, request, &first).ok());
  request.set_page_token(first.next_page_token());
  ASSERT_TRUE(client_->List(&second_context, request, &second).ok());

  ASSERT_EQ(first.requests_size(), 2);
  EXPECT_EQ(first.requests(0).request_id(), ids[2]);
  ASSERT_EQ(second.requests_size(), 1);
  EXPECT_EQ(second.requests(0).request_id(), ids[0]);
  EXPECT_THAT(second.next_page_token(), IsEmpty());
}

TEST_F(CoordinatorTest, CancelReachesTheRank) {
  Start();
  const auto rank = AttachedRank();
  const std::string id = Submit().response.request_id();
  rank->NextAssign();

  grpc::ClientContext context;
  v1::CancelRequest request;
  request.set_request_id(id);
  v1::RequestInfo info;
  ASSERT_TRUE(client_->Cancel(&context, request, &info).ok());

  EXPECT_EQ(info.state(), v1::REQUEST_STATE_CANCELLED);
  const auto cancel = rank->Next(v1::CoordinatorMessage::kCancel);
  ASSERT_TRUE(cancel.has_value());
  EXPECT_EQ(cancel->cancel().request_id(), id);
}

TEST_F(CoordinatorTest, ARequestThatIsNotThereIsNotFound) {
  Start();
  for (const std::string id : {"r1-0000000000000000", "nonsense", "r-", "-"}) {
    Stream stream(*this, id, 0);
    stream.ReadAll();
    EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::NOT_FOUND) << id;
  }
}

TEST_F(CoordinatorTest, ASecondCoordinatorOnTheSameDirectoryIsRefused) {
  Start();

  const auto second = Coordinator::Start(options_);

  EXPECT_TRUE(absl::IsFailedPrecondition(second.status()));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("is in use"));
}

}  // namespace
}  // namespace portolan
