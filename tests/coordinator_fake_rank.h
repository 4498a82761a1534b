#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/control.grpc.pb.h"
#include "runtime/base/mutex.h"

namespace portolan {

// Long, for loaded machines; nothing waits for it to pass.
inline constexpr absl::Duration kTestPatience = absl::Seconds(20);

// A rank that does what a test says: registers, sends, and keeps what the
// coordinator sends until the test asks for it.
class FakeRank {
 public:
  // `waits`: for a coordinator that is not there yet.
  explicit FakeRank(const std::string& address,
                    std::shared_ptr<grpc::ChannelCredentials> credentials =
                        grpc::InsecureChannelCredentials(),
                    bool waits = false)
      : context_(NewContext(waits)),
        stub_(v1::Control::NewStub(grpc::CreateCustomChannel(
            address, std::move(credentials), OwnConnection()))),
        stream_(stub_->Attach(context_.get())),
        reader_([this] { ReadAll(); }) {}
  ~FakeRank() {
    context_->TryCancel();
    reader_.join();
  }

  static v1::Register Registration(uint32_t rank = 0,
                                   uint64_t incarnation = 1) {
    v1::Register message;
    message.set_protocol_version(1);
    message.set_job("job");
    message.set_rank(rank);
    message.set_world_size(2);
    message.set_incarnation(incarnation);
    message.set_host("host");
    message.mutable_model()->set_name("tiny");
    message.mutable_model()->set_fingerprint("f00d");
    message.mutable_model()->set_numerics_id("n1");
    message.mutable_model()->set_max_context(1 << 20);
    message.mutable_model()->set_vocab_size(1000);
    message.mutable_capacity()->set_max_sequences(4);
    return message;
  }

  // Registers and waits for the answer.
  v1::Accepted Attach(const v1::Register& registration = Registration()) {
    v1::RankMessage message;
    *message.mutable_register_() = registration;
    Send(message);
    const auto answer = Next(v1::CoordinatorMessage::kAccepted);
    return answer ? answer->accepted() : v1::Accepted();
  }

  bool Send(const v1::RankMessage& message) { return stream_->Write(message); }

  // The next message of this kind; others that come before it are kept.
  // Nothing if the stream ends, or the patience.
  std::optional<v1::CoordinatorMessage> Next(
      v1::CoordinatorMessage::KindCase kind) {
    const absl::Time deadline = absl::Now() + kTestPatience;
    MutexLock lock(mu_);
    while (true) {
      for (auto it = messages_.begin(); it != messages_.end(); ++it) {
        if (it->kind_case() != kind) continue;
        v1::CoordinatorMessage message = *it;
        messages_.erase(it);
        return message;
      }
      if (ended_ || absl::Now() >= deadline) return std::nullopt;
      changed_.WaitFor(mu_, deadline - absl::Now());
    }
  }
  // What has come and was not asked for; waits for something, or for the end,
  // which is nothing.
  std::vector<v1::CoordinatorMessage> TakeAll() {
    MutexLock lock(mu_);
    while (messages_.empty() && !ended_) changed_.Wait(mu_);
    std::vector<v1::CoordinatorMessage> all(messages_.begin(), messages_.end());
    messages_.clear();
    return all;
  }
  v1::Assign NextAssign() {
    const auto message = Next(v1::CoordinatorMessage::kAssign);
    EXPECT_TRUE(message.has_value()) << "no assignment came";
    return message ? message->assign() : v1::Assign();
  }

  // Tokens first .. first + count - 1 of a request, each its own number, with
  // the text "<number> ".
  static v1::TokenDelta Delta(const v1::Assign& assign, int first, int count) {
    v1::TokenDelta delta;
    delta.set_request_id(assign.request_id());
    delta.set_attempt(assign.attempt());
    delta.set_offset(static_cast<uint32_t>(first));
    for (int i = first; i < first + count; ++i) {
      delta.add_token_ids(i);
      delta.add_texts(std::to_string(i) + " ");
    }
    return delta;
  }
  bool SendTokens(const v1::Assign& assign, int first, int count,
                  std::optional<v1::FinishReason> finish = std::nullopt) {
    v1::RankMessage message;
    v1::TokenDelta& delta = *message.mutable_tokens()->add_deltas();
    delta = Delta(assign, first, count);
    if (finish) delta.mutable_finish()->set_reason(*finish);
    return Send(message);
  }

  // Breaks the stream without a word, as a death does.
  void Break() { context_->TryCancel(); }
  void Goodbye(bool clean) {
    v1::RankMessage message;
    message.mutable_goodbye()->set_clean(clean);
    Send(message);
  }
  // Waits for the end of the stream and tells its status.
  grpc::Status Ended() {
    const absl::Time deadline = absl::Now() + kTestPatience;
    MutexLock lock(mu_);
    while (!ended_ && absl::Now() < deadline) {
      changed_.WaitFor(mu_, deadline - absl::Now());
    }
    return ended_ ? status_
                  : grpc::Status(grpc::StatusCode::UNKNOWN, "still open");
  }

 private:
  // Else gRPC shares one connection between equal channels.
  static grpc::ChannelArguments OwnConnection() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return arguments;
  }

  static std::unique_ptr<grpc::ClientContext> NewContext(bool waits) {
    auto context = std::make_unique<grpc::ClientContext>();
    context->set_wait_for_ready(waits);
    return context;
  }

  void ReadAll() {
    v1::CoordinatorMessage message;
    while (stream_->Read(&message)) {
      MutexLock lock(mu_);
      messages_.push_back(message);
      changed_.NotifyAll();
    }
    const grpc::Status status = stream_->Finish();
    MutexLock lock(mu_);
    status_ = status;
    ended_ = true;
    changed_.NotifyAll();
  }

  const std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<v1::Control::Stub> stub_;
  std::unique_ptr<
      grpc::ClientReaderWriter<v1::RankMessage, v1::CoordinatorMessage>>
      stream_;
  Mutex mu_;
  CondVar changed_;
  std::deque<v1::CoordinatorMessage> messages_ ABSL_GUARDED_BY(mu_);
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  grpc::Status status_ ABSL_GUARDED_BY(mu_);
  std::thread reader_;
};

}  // namespace portolan
