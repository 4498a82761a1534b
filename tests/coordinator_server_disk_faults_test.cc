// A disk that is full, and who may read it.

#include <gmock/gmock.h>

#include <atomic>
#include <filesystem>

#include "tests/coordinator_server_faults_fixture.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;

TEST_F(CoordinatorFaultsTest, NobodyElseMayReadTheDataDirectory) {
  std::filesystem::create_directories(dir_);
  std::filesystem::permissions(dir_, std::filesystem::perms::all);
  Start();

  EXPECT_EQ(std::filesystem::status(dir_).permissions(),
            std::filesystem::perms::owner_all);
}

TEST_F(CoordinatorFaultsTest, AFullDiskRefusesNewRequestsAndEndsRunningOnes) {
  std::atomic<int64_t> free_bytes = int64_t{1} << 40;
  options_.store.free_bytes = [&](const std::string&) {
    return free_bytes.load();
  };
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();
  stream.Read();  // it is accepted
  free_bytes = 1000;

  const auto refused = Submit();
  rank->SendTokens(assign, 0, 3, v1::FINISH_REASON_STOP);
  stream.ReadAll();

  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("--min-free-disk"));
  EXPECT_THAT(refused.status.error_details(), HasSubstr("RetryInfo"));
  EXPECT_TRUE(stream.status.ok());
  EXPECT_EQ(stream.tokens, Count(0, 3));
  EXPECT_EQ(Stats().queued(), 0u);
  free_bytes = int64_t{1} << 40;
  EXPECT_TRUE(Submit().status.ok());
}

TEST_F(CoordinatorFaultsTest, AReallyFullDiskHoldsUpNothingButTokens) {
  options_.store.max_pages = 40;
  options_.hub.queue.reattach = kTestPatience;
  Start();
  auto rank = AttachedRank();
  v1::GenerateRequest first = Request("first");
  const std::string id = Submit(first).response.request_id();
  const v1::Assign assign = rank->NextAssign();
  // SQLite itself finds no room for these.
  v1::RankMessage message;
  v1::TokenDelta& delta = *message.mutable_tokens()->add_deltas();
  delta = FakeRank::Delta(assign, 0, 1);
  const std::string text(200'000, 'x');
  delta.set_texts(0, text);
  rank->Send(message);

  // Those that come before the tokens are taken.
  grpc::Status refused;
  const absl::Time deadline = absl::Now() + kTestPatience;
  while (refused.ok() && absl::Now() < deadline) {
    refused = Submit().status;
  }
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
      << refused.error_message();
  EXPECT_THAT(refused.error_message(), HasSubstr("full"));
  EXPECT_THAT(refused.error_details(), HasSubstr("RetryInfo"));
  EXPECT_EQ(Get(id).num_tokens(), 0u) << "what is not kept is not shown";
  EXPECT_EQ(Submit(first).response.request_id(), id);
  {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kTestPatience));
    v1::ListResponse list;
    const grpc::Status listed = client_->List(&context, {}, &list);
    EXPECT_TRUE(listed.ok()) << listed.error_message();
    EXPECT_GE(list.requests_size(), 1);
  }

  Stop();  // waits for nothing
  options_.store.max_pages = 0;
  Start();
  rank = NewRank();
  ASSERT_EQ(rank->Attach(Holding(assign, 0, 1)).resume_size(), 1);
  delta.mutable_finish()->set_reason(v1::FINISH_REASON_STOP);
  rank->Send(message);
  Stream stream(*this, id, 0);
  stream.ReadAll();
  EXPECT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.text, text);
}

TEST_F(CoordinatorFaultsTest, ASubmitIsNotAnsweredBeforeTheDiskHasIt) {
  options_.store.max_pages = 40;
  options_.hub.queue.reattach = kTestPatience;
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request("key"));
  const v1::Assign assign = rank->NextAssign();
  stream.Read();  // it is accepted
  v1::RankMessage message;
  v1::TokenDelta& delta = *message.mutable_tokens()->add_deltas();
  delta = FakeRank::Delta(assign, 0, 1);
  delta.set_texts(0, std::string(200'000, 'x'));
  rank->Send(message);
  grpc::Status refused;
  const absl::Time deadline = absl::Now() + kTestPatience;
  while (refused.ok() && absl::Now() < deadline) {
    refused = Submit().status;
  }

  for (int time = 0; time < 2; ++time) {
    const grpc::Status status = Submit(Request("key")).status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
        << time << ": " << status.error_message();
  }
}

}  // namespace
}  // namespace portolan
