#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cluster/coordinator/server/coordinator.h"
#include "proto/inference.grpc.pb.h"
#include "tests/coordinator_fake_rank.h"

namespace portolan {

// A coordinator in this process, over real gRPC on a loopback port, and what a
// client does with it.
class CoordinatorTest : public ::testing::Test {
 protected:
  CoordinatorTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    dir_ = std::filesystem::path(::testing::TempDir()) /
           (std::string("coordinator_") + info->name());
    std::filesystem::remove_all(dir_);
    options_.listen = "127.0.0.1:0";
    options_.data_dir = dir_.string();
    options_.hub.queue.reattach = absl::Milliseconds(300);
  }
  ~CoordinatorTest() override {
    Stop();
    std::filesystem::remove_all(dir_);
  }

  void Start() {
    auto started = Coordinator::Start(options_);
    ASSERT_TRUE(started.ok()) << started.status();
    coordinator_ = *std::move(started);
    client_ = v1::Inference::NewStub(grpc::CreateChannel(
        coordinator_->address(), grpc::InsecureChannelCredentials()));
  }
  void Stop() {
    client_.reset();
    coordinator_.reset();
  }
  std::unique_ptr<FakeRank> NewRank() {
    return std::make_unique<FakeRank>(coordinator_->address());
  }
  // A rank that is registered.
  std::unique_ptr<FakeRank> AttachedRank(uint32_t rank = 0,
                                         uint64_t incarnation = 1) {
    auto attached = NewRank();
    attached->Attach(FakeRank::Registration(rank, incarnation));
    return attached;
  }

  static v1::GenerateRequest Request(const std::string& key = "") {
    v1::GenerateRequest request;
    for (int id : {1, 2, 3}) request.mutable_tokens()->add_ids(id);
    request.mutable_params()->set_max_tokens(8);
    request.set_idempotency_key(key);
    return request;
  }

  struct Submitted {
    grpc::Status status;
    v1::SubmitResponse response;
  };
  Submitted Submit(const v1::GenerateRequest& request = Request()) {
    grpc::ClientContext context;
    Submitted result;
    result.status = client_->Submit(&context, request, &result.response);
    return result;
  }

  v1::RequestInfo Get(const std::string& id, bool output = true) {
    grpc::ClientContext context;
    v1::GetRequest request;
    request.set_request_id(id);
    request.set_include_output(output);
    v1::RequestInfo info;
    const grpc::Status status = client_->Get(&context, request, &info);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return info;
  }
  v1::Stats Stats() {
    grpc::ClientContext context;
    v1::Stats stats;
    EXPECT_TRUE(client_->GetStats(&context, {}, &stats).ok());
    return stats;
  }

  // A stream of tokens, read message by message.
  class Stream {
   public:
    Stream(CoordinatorTest& test, const v1::GenerateRequest& request,
           absl::Duration deadline = kTestPatience) {
      context_.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
      reader_ = test.client_->Generate(&context_, request);
    }
    Stream(CoordinatorTest& test, const std::string& watched, uint32_t from) {
      context_.set_deadline(absl::ToChronoTime(absl::Now() + kTestPatience));
      v1::WatchRequest request;
      request.set_request_id(watched);
      request.set_from_offset(from);
      reader_ = test.client_->Watch(&context_, request);
    }
    ~Stream() { context_.TryCancel(); }

    // False: the stream has ended. Checks the order of offsets.
    bool Read() {
      v1::GenerateResponse message;
      if (!reader_->Read(&message)) {
        status = reader_->Finish();
        return false;
      }
      if (id.empty()) {
        id = message.request_id();
        next_ = message.offset();
      }
      EXPECT_EQ(message.offset(), next_);
      next_ += static_cast<uint32_t>(message.token_ids_size());
      tokens.insert(tokens.end(), message.token_ids().begin(),
                    message.token_ids().end());
      text += message.text();
      if (message.has_finish()) finish = message.finish();
      return true;
    }
    void ReadUntil(size_t num_tokens) {
      while (tokens.size() < num_tokens && Read()) {
      }
    }
    void ReadAll() {
      while (Read()) {
      }
    }
    void Cancel() { context_.TryCancel(); }

    std::string id;
    std::vector<int> tokens;
    std::string text;
    v1::Finish finish;
    grpc::Status status;

   private:
    grpc::ClientContext context_;
    std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
    uint32_t next_ = 0;
  };

  static std::vector<int> Count(int first, int count) {
    std::vector<int> numbers;
    for (int i = first; i < first + count; ++i) numbers.push_back(i);
    return numbers;
  }

  std::filesystem::path dir_;
  CoordinatorOptions options_;
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<v1::Inference::Stub> client_;
};

}  // namespace portolan
