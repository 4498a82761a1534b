// Deadlines, quotas, and sizes that are too large.

#include <gmock/gmock.h>

#include "proto/rpc_status.pb.h"
#include "tests/coordinator_server_faults_fixture.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using Kind = v1::CoordinatorMessage;

TEST_F(CoordinatorFaultsTest, ADeadlineEndsARequestInDecode) {
  Start();
  const auto rank = AttachedRank();
  v1::GenerateRequest request = Request();
  request.mutable_timeout()->set_nanos(50'000'000);
  Stream stream(*this, request);
  const v1::Assign assign = rank->NextAssign();
  EXPECT_LE(assign.timeout_ms(), 50u);
  rank->SendTokens(assign, 0, 1);

  stream.ReadAll();

  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(stream.tokens, Count(0, 1));
  EXPECT_TRUE(rank->Next(Kind::kCancel).has_value());
}

TEST_F(CoordinatorFaultsTest, ADeadlineEndsARequestThatWaits) {
  Start();
  v1::GenerateRequest request = Request();
  request.mutable_timeout()->set_nanos(50'000'000);

  Stream stream(*this, request);
  stream.ReadAll();

  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(CoordinatorFaultsTest, TheCallsOwnDeadlineCountsToo) {
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request(), absl::Milliseconds(200));
  const v1::Assign assign = rank->NextAssign();
  EXPECT_LE(assign.timeout_ms(), 200u);

  stream.ReadAll();

  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(rank->Next(Kind::kCancel).has_value());
}

TEST_F(CoordinatorFaultsTest, AClockThatWasSetBackChangesNoOrderAndNoDeadline) {
  const absl::Time noon = absl::FromUnixSeconds(1'800'000'000);
  options_.wall_now = noon;
  Start();
  v1::GenerateRequest request = Request();
  request.mutable_timeout()->set_seconds(60);
  const std::string first = Submit(request).response.request_id();
  Stop();

  options_.wall_now = noon - absl::Hours(5);
  Start();
  const std::string second = Submit().response.request_id();

  const v1::RequestInfo before = Get(first);
  const v1::RequestInfo after = Get(second);
  EXPECT_EQ(before.state(), v1::REQUEST_STATE_QUEUED);
  EXPECT_GE(after.created().seconds(), before.created().seconds());
  const auto rank = AttachedRank();
  const v1::Assign assign = rank->NextAssign();
  EXPECT_EQ(assign.request_id(), first) << "the older one goes first";
  EXPECT_LE(assign.timeout_ms(), 60'000u);
  EXPECT_GE(assign.timeout_ms(), 30'000u);
}

TEST_F(CoordinatorFaultsTest, AFullQueueSaysWhenToTryAgain) {
  options_.hub.queue.max_queued_requests = 2;
  Start();
  Submit();
  Submit(Request("key"));

  grpc::ClientContext context;
  v1::SubmitResponse response;
  const grpc::Status status = client_->Submit(&context, Request(), &response);

  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  google::rpc::RetryInfo info;
  ASSERT_TRUE(details.details(0).UnpackTo(&info));
  EXPECT_GE(info.retry_delay().seconds(), 1);
  const auto& trailers = context.GetServerTrailingMetadata();
  ASSERT_TRUE(trailers.contains("grpc-retry-pushback-ms"));
  EXPECT_TRUE(Submit(Request("key")).response.existed())
      << "a retry of what was accepted is no new request";
}

TEST_F(CoordinatorFaultsTest, AQuotaBindsOneClient) {
  options_.hub.queue.max_client_requests = 1;
  Start();
  EXPECT_TRUE(Submit().status.ok());

  const auto second = Submit();

  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(second.status.error_message(), HasSubstr("--client-requests"));
}

TEST_F(CoordinatorFaultsTest, StreamsOfAClientAreBounded) {
  options_.hub.max_client_streams = 2;
  Start();
  const std::string id = Submit().response.request_id();
  auto first = std::make_unique<Stream>(*this, id, 0);
  Stream second(*this, Request());
  ASSERT_TRUE(first->Read());
  ASSERT_TRUE(second.Read());

  Stream watch(*this, id, 0);
  Stream generate(*this, Request());
  watch.ReadAll();
  generate.ReadAll();

  for (const Stream* refused : {&watch, &generate}) {
    EXPECT_EQ(refused->status.error_code(),
              grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(refused->status.error_message(), HasSubstr("--client-streams"));
  }
  EXPECT_EQ(Stats().accepted(), 2u) << "what is refused is not accepted";
  // One that ends makes room for another.
  first->Cancel();
  first->ReadAll();
  bool admitted = false;
  while (!admitted) {
    Stream again(*this, id, 0);
    admitted = again.Read();
    if (!admitted) {
      ASSERT_EQ(again.status.error_code(),
                grpc::StatusCode::RESOURCE_EXHAUSTED);
    }
  }
}

TEST_F(CoordinatorFaultsTest, OversizedMessagesAreRefused) {
  options_.max_message_bytes = 100'000;
  Start();
  v1::GenerateRequest request;
  request.set_text(std::string(200'000, 'x'));

  EXPECT_EQ(Submit(request).status.error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Submit().status.ok());
}

TEST_F(CoordinatorFaultsTest, TheLimitOfClientsMessagesDoesNotBindRanks) {
  options_.max_message_bytes = 10'000;
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();
  v1::RankMessage message;
  v1::TokenDelta& delta = *message.mutable_tokens()->add_deltas();
  delta = FakeRank::Delta(assign, 0, 1);
  delta.set_texts(0, std::string(100'000, 'x'));
  delta.mutable_finish()->set_reason(v1::FINISH_REASON_STOP);
  rank->Send(message);
  stream.ReadAll();

  EXPECT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.text.size(), 100'000u);
}

TEST_F(CoordinatorFaultsTest, LimitsThatLetNothingInAreNoOptions) {
  options_.max_message_bytes = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(options_.Validate()));
  options_.max_message_bytes = 10'000;
  options_.hub.limits.max_prompt_tokens = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(options_.Validate()));
}

}  // namespace
}  // namespace portolan
