#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <latch>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/coordinator/hub.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Streams without gRPC, so that all of it runs under ThreadSanitizer: what is
// sent is written at once, by another thread's leave.
class FakeClient : public ClientStream {
 public:
  explicit FakeClient(RequestHub& hub) : hub_(hub) {}
  void Send(v1::GenerateResponse message) override {
    {
      MutexLock lock(mu_);
      for (const int32_t token : message.token_ids()) tokens_.push_back(token);
      if (message.has_finish()) finish_ = message.finish();
    }
    hub_.ClientWritten(this, true);
  }
  void End(absl::Status status) override {
    {
      MutexLock lock(mu_);
      status_ = std::move(status);
    }
    ended_.count_down();
  }

  absl::Status WaitForEnd() {
    ended_.wait();
    MutexLock lock(mu_);
    return status_;
  }
  std::vector<int32_t> tokens() {
    MutexLock lock(mu_);
    return tokens_;
  }

 private:
  RequestHub& hub_;
  std::latch ended_{1};
  Mutex mu_;
  std::vector<int32_t> tokens_ ABSL_GUARDED_BY(mu_);
  v1::Finish finish_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

// Answers each assignment with its tokens 0 .. max_tokens - 1, one a message.
class FakeRankStream : public RankStream {
 public:
  explicit FakeRankStream(RequestHub& hub) : hub_(hub) {}
  void Register() {
    v1::RankMessage message;
    v1::Register& registration = *message.mutable_register_();
    registration.set_protocol_version(1);
    registration.set_job("job");
    registration.set_world_size(1);
    registration.set_incarnation(1);
    registration.mutable_model()->set_name("tiny");
    registration.mutable_model()->set_fingerprint("f00d");
    registration.mutable_model()->set_numerics_id("n1");
    registration.mutable_capacity()->set_max_sequences(8);
    hub_.RankSent(this, message);
  }
  void Beat(std::optional<v1::RankMetrics> metrics) {
    v1::RankMessage message;
    v1::Heartbeat& beat = *message.mutable_heartbeat();
    beat.set_free_sequences(8);
    if (metrics) *beat.mutable_metrics() = *std::move(metrics);
    hub_.RankSent(this, message);
  }
  void Send(v1::CoordinatorMessage message) override {
    hub_.RankWritten(this, true);
    if (!message.has_assign() || silent) return;
    const v1::Assign& assign = message.assign();
    const int max = static_cast<int>(assign.params().max_tokens());
    for (int i = assign.prefix_size(); i < max; ++i) {
      v1::RankMessage tokens;
      v1::TokenDelta& delta = *tokens.mutable_tokens()->add_deltas();
      delta.set_request_id(assign.request_id());
      delta.set_attempt(assign.attempt());
      delta.set_offset(static_cast<uint32_t>(i));
      delta.add_token_ids(i);
      delta.add_texts("t");
      if (i + 1 == max) {
        delta.mutable_finish()->set_reason(v1::FINISH_REASON_LENGTH);
      }
      hub_.RankSent(this, tokens);
    }
  }
  void ReadNext() override {}
  void End(absl::Status) override {}

  std::atomic<bool> silent = false;

 private:
  RequestHub& hub_;
};

class RequestHubTest : public ::testing::Test {
 protected:
  RequestHubTest() : telemetry_(nullptr) {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    dir_ = std::filesystem::path(::testing::TempDir()) /
           (std::string("hub_") + info->name());
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    auto store =
        RequestStore::Open({.path = (dir_ / "requests.sqlite").string(),
                            .free_bytes = [this](const std::string&) {
                              if (stalled_) go_on_.wait();
                              return INT64_MAX;
                            }});
    hub_ = *RequestHub::Start({}, absl::UnixEpoch(), *std::move(store),
                              telemetry_);
    rank_ = std::make_shared<FakeRankStream>(*hub_);
  }
  ~RequestHubTest() override {
    hub_->EndStreams();
    hub_->Stop();
    std::filesystem::remove_all(dir_);
  }
  void Attach() {
    hub_->RankCame(rank_);
    rank_->Register();
  }
  static v1::GenerateRequest Request(uint32_t max_tokens) {
    v1::GenerateRequest request;
    request.set_text("prompt");
    request.mutable_params()->set_max_tokens(max_tokens);
    return request;
  }
  // The store does nothing from here on, up to GoOn().
  void Stall() {
    stalled_ = true;
    hub_->Submit({}, Request(1), [](absl::StatusOr<v1::SubmitResponse>) {});
  }
  void GoOn() {
    stalled_ = false;
    go_on_.count_down();
  }
  // A client whose stream lies where that of the last one lay.
  std::shared_ptr<FakeClient> ClientInOnePlace() {
    return {new (place_) FakeClient(*hub_), [this](FakeClient* client) {
              client->~FakeClient();
              place_is_free_.Post([] {});
            }};
  }
  void Leave(std::shared_ptr<FakeClient> client) {
    hub_->ClientGone(client.get());
    client.reset();
    std::vector<absl::AnyInvocable<void()>> done;
    place_is_free_.Take(absl::InfiniteDuration(), done);
  }
  // Calls and waits for the reply.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(
      void (RequestHub::*function)(Caller, Request,
                                   RequestHub::Reply<Response>),
      Request request) {
    absl::StatusOr<Response> result = absl::UnknownError("no reply");
    std::latch replied(1);
    ((*hub_).*function)(Caller{}, std::move(request),
                        [&](absl::StatusOr<Response> reply) {
                          result = std::move(reply);
                          replied.count_down();
                        });
    replied.wait();
    return result;
  }

  absl::StatusOr<v1::Stats> Call(
      void (RequestHub::*function)(RequestHub::Reply<v1::Stats>)) {
    absl::StatusOr<v1::Stats> result = absl::UnknownError("no reply");
    std::latch replied(1);
    ((*hub_).*function)([&](absl::StatusOr<v1::Stats> reply) {
      result = std::move(reply);
      replied.count_down();
    });
    replied.wait();
    return result;
  }
  // With all that was posted before: the second call comes after the turn of
  // the first one.
  std::string MetricsOfNow() {
    EXPECT_TRUE(Call(&RequestHub::GetStats).ok());
    EXPECT_TRUE(Call(&RequestHub::GetStats).ok());
    return telemetry_.MetricsText();
  }

  std::filesystem::path dir_;
  std::atomic<bool> stalled_ = false;
  std::latch go_on_{1};
  alignas(FakeClient) std::byte place_[sizeof(FakeClient)];
  Mailbox<absl::AnyInvocable<void()>> place_is_free_;
  Telemetry telemetry_;
  std::unique_ptr<RequestHub> hub_;
  std::shared_ptr<FakeRankStream> rank_;
};

TEST_F(RequestHubTest, ManyClientsGetTheirTokensOnceAndInOrder) {
  constexpr int kThreads = 8;
  constexpr int kRequests = 20;
  Attach();

  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kRequests; ++i) {
        const int count = 1 + (t * kRequests + i) % 17;
        const auto client = std::make_shared<FakeClient>(*hub_);
        hub_->Generate({}, Request(static_cast<uint32_t>(count)), client);
        EXPECT_TRUE(client->WaitForEnd().ok());
        std::vector<int32_t> expected;
        for (int token = 0; token < count; ++token) expected.push_back(token);
        EXPECT_EQ(client->tokens(), expected);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(RequestHubTest, WhatIsServedIsNoLongerOfAnUnknownModel) {
  const auto client = std::make_shared<FakeClient>(*hub_);
  hub_->Generate({}, Request(3), client);
  EXPECT_THAT(MetricsOfNow(),
              HasSubstr("requests_waiting{model_name=\"unknown\"} 1"));

  Attach();
  ASSERT_TRUE(client->WaitForEnd().ok());

  const std::string text = MetricsOfNow();
  EXPECT_THAT(text,
              HasSubstr("generation_tokens_total{model_name=\"tiny\"} 3"));
  EXPECT_THAT(text, Not(HasSubstr("unknown")));
}

TEST_F(RequestHubTest, StatsHaveTheExpertFiguresThatARankToldLast) {
  Attach();
  v1::RankMetrics metrics;
  metrics.set_steps(7);
  rank_->Beat(metrics);
  metrics.set_steps(8);
  metrics.set_expert_hits(60);
  metrics.set_expert_late(5);
  metrics.set_expert_misses(4);
  metrics.set_expert_stall_s(0.5);
  metrics.set_expert_resident_bytes(2048);
  metrics.set_expert_capacity_bytes(4096);
  rank_->Beat(metrics);
  rank_->Beat(std::nullopt);  // as in the heartbeat before

  const absl::StatusOr<v1::Stats> stats = Call(&RequestHub::GetStats);
  ASSERT_TRUE(stats.ok());
  ASSERT_EQ(stats->ranks_size(), 1);
  const v1::RankStats& rank = stats->ranks(0);
  EXPECT_EQ(rank.steps(), 8u);
  EXPECT_EQ(rank.expert_hits(), 60u);
  EXPECT_EQ(rank.expert_late(), 5u);
  EXPECT_EQ(rank.expert_misses(), 4u);
  EXPECT_EQ(rank.expert_stall_s(), 0.5);
  EXPECT_EQ(rank.expert_memory_bytes(), 4096u);
}

TEST_F(RequestHubTest, AnEndedRequestIsReadBackFromTheStore) {
  Attach();
  const auto submitted = Call(&RequestHub::Submit, Request(5));
  ASSERT_TRUE(submitted.ok()) << submitted.status();
  v1::WatchRequest watch;
  watch.set_request_id(submitted->request_id());
  for (int i = 0; i < 2; ++i) {
    const auto client = std::make_shared<FakeClient>(*hub_);
    hub_->Watch({}, watch, client);
    EXPECT_TRUE(client->WaitForEnd().ok());
    EXPECT_THAT(client->tokens(), ::testing::ElementsAre(0, 1, 2, 3, 4));
  }

  v1::GetRequest get;
  get.set_request_id(submitted->request_id());
  get.set_include_output(true);
  const auto info = Call(&RequestHub::Get, get);
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->text(), "ttttt");
  EXPECT_EQ(info->state(), v1::REQUEST_STATE_DONE);
}

// Each way of refusing, by either call.
TEST_F(RequestHubTest, StatsAndMetricsCountTheSameRefusals) {
  Attach();
  ASSERT_TRUE(Call(&RequestHub::Submit, Request(1)).ok());
  v1::GenerateRequest invalid = Request(1);
  invalid.mutable_params()->set_temperature(-1);
  v1::GenerateRequest elsewhere = Request(1);
  elsewhere.set_model("no such model");
  v1::GenerateRequest keyed = Request(1);
  keyed.set_idempotency_key("key");
  ASSERT_TRUE(Call(&RequestHub::Submit, keyed).ok());
  keyed.set_text("another prompt");
  for (const v1::GenerateRequest& request : {invalid, elsewhere, keyed}) {
    EXPECT_FALSE(Call(&RequestHub::Submit, request).ok());
    const auto client = std::make_shared<FakeClient>(*hub_);
    hub_->Generate({}, request, client);
    EXPECT_FALSE(client->WaitForEnd().ok());
  }
  hub_->Drain();
  EXPECT_FALSE(Call(&RequestHub::Submit, Request(1)).ok());

  const absl::StatusOr<v1::Stats> stats = Call(&RequestHub::GetStats);
  ASSERT_TRUE(stats.ok());
  EXPECT_EQ(stats->rejected(), 7u);
  for (const char* line : {
           "{code=\"INVALID_ARGUMENT\",model_name=\"tiny\"} 2",
           "{code=\"NOT_FOUND\",model_name=\"unknown\"} 2",
           "{code=\"ALREADY_EXISTS\",model_name=\"tiny\"} 2",
           "{code=\"UNAVAILABLE\",model_name=\"tiny\"} 1",
       }) {
    EXPECT_THAT(
        telemetry_.MetricsText(),
        HasSubstr(absl::StrCat("portolan_admission_rejections_total", line)));
  }
}

TEST_F(RequestHubTest, AnAnswerForAStreamThatWentGoesToNoOther) {
  Attach();
  Stall();
  v1::WatchRequest nothing;
  nothing.set_request_id("r99-0");
  auto first = ClientInOnePlace();
  hub_->Watch({}, nothing, first);
  Leave(std::move(first));

  auto second = ClientInOnePlace();
  hub_->Generate({}, Request(3), second);
  GoOn();

  EXPECT_TRUE(second->WaitForEnd().ok());
  EXPECT_THAT(second->tokens(), ::testing::ElementsAre(0, 1, 2));
}

TEST_F(RequestHubTest, ACallThatWentIsNotAcceptedForAnotherStream) {
  Attach();
  Stall();
  v1::GenerateRequest keyed = Request(2);
  keyed.set_idempotency_key("key");
  auto first = ClientInOnePlace();
  hub_->Generate({}, keyed, first);
  Leave(std::move(first));

  auto second = ClientInOnePlace();
  hub_->Generate({}, Request(5), second);
  GoOn();

  EXPECT_TRUE(second->WaitForEnd().ok());
  EXPECT_THAT(second->tokens(), ::testing::ElementsAre(0, 1, 2, 3, 4));
}

TEST_F(RequestHubTest, AStopAnswersEveryCall) {
  rank_->silent = true;
  Attach();
  const auto client = std::make_shared<FakeClient>(*hub_);
  hub_->Generate({}, Request(5), client);

  hub_->EndStreams();

  EXPECT_TRUE(absl::IsUnavailable(client->WaitForEnd()));
  EXPECT_TRUE(
      absl::IsUnavailable(Call(&RequestHub::Submit, Request(1)).status()));
  const auto late = std::make_shared<FakeClient>(*hub_);
  hub_->Generate({}, Request(1), late);
  EXPECT_TRUE(absl::IsUnavailable(late->WaitForEnd()));
}

}  // namespace
}  // namespace portolan
