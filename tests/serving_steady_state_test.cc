// What a decode step must not do once it is under way: allocate.

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/base/aligned_buffer.h"
#include "runtime/serving/step_loop.h"
#include "tests/counted_allocations.h"
#include "tests/model_fixture.h"

namespace portolan {
namespace {

constexpr int64_t kPromptTokens = 20;
constexpr int64_t kWarmUpTokens = 8;
// Crosses the border of a KV page twice.
constexpr int64_t kSteadyTokens = 72;

// Two sequences of every rank, from the start.
class TwoSequences : public RequestFeed {
 public:
  absl::Status Poll(Engine& engine) override {
    if (closed_) return absl::OkStatus();
    closed_ = true;
    for (int64_t id = 0; id < 2; ++id) {
      Request request;
      request.id = id;
      for (int32_t i = 0; i < kPromptTokens; ++i) {
        request.prompt.push_back((i * 739 + 11) % 4093);
      }
      request.max_tokens = kWarmUpTokens + kSteadyTokens + 4;
      request.sampling.temperature = 0.8;
      request.sampling.top_p = 0.9;
      if (absl::Status s = engine.Add(request); !s.ok()) return s;
    }
    return absl::OkStatus();
  }
  bool closed() const override { return closed_; }
  absl::Status WaitForWork() override { return absl::OkStatus(); }

 private:
  bool closed_ = false;
};

// Counts between the steady tokens of the first sequence of one rank.
class CountingSink : public TokenSink {
 public:
  explicit CountingSink(bool counts) : counts_(counts) {}

  bool OnToken(int64_t id, const GeneratedToken&) override {
    if (id != 0 || !counts_) return false;
    ++num_tokens_;
    if (num_tokens_ == kWarmUpTokens) g_counting = true;
    if (num_tokens_ == kWarmUpTokens + kSteadyTokens) g_counting = false;
    return false;
  }
  void OnFinish(int64_t, const SequenceEnd&) override {}

 private:
  const bool counts_;
  int64_t num_tokens_ = 0;
};

int64_t AllocationsOf(const JobOptions& options) {
  g_allocations = 0;
  const absl::Status status =
      RunJob(options, [&](const Model& model, RunWorld run_world) {
        return run_world([&](Transport& transport) -> absl::Status {
          CountingSink sink(transport.rank() == Rank{0});
          auto rank = RankRuntime::Create(options, model, transport, sink);
          if (!rank.ok()) return rank.status();
          TwoSequences feed;
          StepLoop loop((*rank)->exchange(), (*rank)->engine(), feed, nullptr,
                        (*rank)->observer(), (*rank)->profile());
          if (absl::Status s = loop.Run(); !s.ok()) return s;
          return (*rank)->SaveProfile();
        });
      });
  g_counting = false;
  EXPECT_TRUE(status.ok()) << status;
  return g_allocations;
}

TEST(SteadyStateTest, TheCounterCounts) {
  g_allocations = 0;
  g_counting = true;
  delete new int;
  EXPECT_TRUE(AlignedBuffer::Allocate(1).ok());
  g_counting = false;
  EXPECT_EQ(g_allocations, 2);
}

TEST(SteadyStateTest, DecodingAllocatesNothing) {
  EXPECT_EQ(AllocationsOf(BundledModel()), 0);
}

TEST(SteadyStateTest, DecodingOnSeveralThreadsAllocatesNothing) {
  JobOptions options = BundledModel();
  options.threads = 3;
  EXPECT_EQ(AllocationsOf(options), 0);
}

TEST(SteadyStateTest, RanksThatExchangeTokensAllocateNothing) {
  EXPECT_EQ(AllocationsOf(BundledModel(3)), 0);
}

// Policies that foretell, evict and load in every step.
class FetchingSteadyStateTest : public testing::TestWithParam<const char*> {};

TEST_P(FetchingSteadyStateTest, FetchingExpertsAllocatesNothing) {
  JobOptions options = BundledModel();
  options.expert_memory = "25%";
  options.policy = GetParam();
  EXPECT_EQ(AllocationsOf(options), 0);
}

INSTANTIATE_TEST_SUITE_P(Policies, FetchingSteadyStateTest,
                         testing::Values("lru", "gate-1", "fmoe", "adaptive"),
                         [](const auto& policy) {
                           std::string name = policy.param;
                           std::erase(name, '-');
                           return name;
                         });

TEST(SteadyStateTest, AProfileIsKeptWithoutAllocationAndCoversTheSteps) {
  JobOptions options = BundledModel();
  options.profile_file = testing::TempDir() + "/steady.json";

  EXPECT_EQ(AllocationsOf(options), 0);

  std::ifstream file(options.profile_file);
  const nlohmann::json trace = nlohmann::json::parse(file);
  std::map<std::string, int> times;
  for (const nlohmann::json& event : trace.at("traceEvents")) {
    ++times[event.at("name")];
  }
  for (const Zone zone :
       {Zone::kStep, Zone::kPlan, Zone::kStepRecord, Zone::kAttention,
        Zone::kQkv, Zone::kHeads, Zone::kScores, Zone::kAttentionOutput,
        Zone::kGate, Zone::kExchange, Zone::kExperts, Zone::kGateUp,
        Zone::kDown, Zone::kCombine, Zone::kLogits, Zone::kSampling}) {
    EXPECT_GE(times[ZoneName(zone)], kSteadyTokens) << ZoneName(zone);
  }
}

}  // namespace
}  // namespace portolan
