#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "experts/ownership.h"
#include "experts/replay.h"
#include "experts/trace_join.h"
#include "tests/synthetic_trace.h"

namespace portolan {
namespace {

ReplayOptions Options(const char* memory, const char* link = "1GB/s,50us") {
  ReplayOptions options;
  options.expert_memory = memory;
  options.link = *ParseLinkSpec(link);
  return options;
}

ReplayResult MustReplay(const Trace& trace, std::string_view policy,
                        const ReplayOptions& options) {
  absl::StatusOr<ReplayResult> result = Replay(trace, policy, options, nullptr);
  EXPECT_TRUE(result.ok()) << result.status();
  return *std::move(result);
}

double StallSeconds(const ReplayResult& result) {
  return absl::ToDoubleSeconds(result.total.stall);
}

// The union of every layer visit, counted by hand.
int64_t CountNeeds(const Trace& trace) {
  int64_t needs = 0;
  for (const TraceStep& step : trace.steps) {
    for (const TraceLayer& layer : step.layers) {
      std::vector<uint16_t> experts = layer.experts;
      std::ranges::sort(experts);
      needs += std::unique(experts.begin(), experts.end()) - experts.begin();
    }
  }
  return needs;
}

TEST(ReplayTest, CountsTheUnionOfAStepOnce) {
  const Trace trace = SyntheticTrace();
  const int64_t needs = CountNeeds(trace);
  for (const int32_t ranks : {1, 2, 3}) {
    ReplayOptions options = Options("50%");
    options.num_ranks = ranks;

    const ReplayResult result = MustReplay(trace, "lru", options);

    EXPECT_EQ(result.total.accesses(), needs) << ranks << " ranks";
    EXPECT_EQ(result.total.steps, 200);
  }
}

TEST(ReplayTest, WithAllExpertsInMemoryNothingMisses) {
  const Trace trace = SyntheticTrace();

  const ReplayResult result = MustReplay(trace, "lru", Options("all"));

  EXPECT_EQ(result.total.hits, CountNeeds(trace));
  EXPECT_EQ(result.total.demand_bytes, 0);
  EXPECT_EQ(result.lost(), absl::ZeroDuration());
}

// 3 ranks of 16 experts own 6, 5 and 5 in each layer.
TEST(ReplayTest, ABudgetIsAShareOfARanksOwnExperts) {
  const Trace trace = SyntheticTrace();
  ASSERT_EQ(trace.header.num_experts, 16);
  ASSERT_EQ(trace.header.num_layers, 4);
  ReplayOptions options = Options("all");
  options.num_ranks = 3;
  EXPECT_EQ(MustReplay(trace, "lru", options).total.misses, 0);

  // All but one expert of the first rank, all of the others.
  options.expert_memory = absl::StrCat(23 * trace.header.expert_bytes, "B");
  const ReplayResult result = MustReplay(trace, "lru", options);

  EXPECT_GT(result.ranks[0].misses, 0);
  EXPECT_EQ(result.ranks[1].misses, 0);
  EXPECT_EQ(result.ranks[2].misses, 0);
}

TEST(ReplayTest, TimeIsComputePlusWhatWaitingCosts) {
  const Trace trace = SyntheticTrace();

  const ReplayResult result = MustReplay(trace, "lru", Options("25%"));

  EXPECT_NEAR(absl::ToDoubleSeconds(result.lost()), StallSeconds(result), 1e-6);
}

TEST(ReplayTest, ADemandMissCostsALoadThatComputeOverlapsInPart) {
  // One step, nothing in memory: a layer of one token needs two experts.
  SyntheticOptions synthetic;
  synthetic.num_steps = 1;
  synthetic.prompt_tokens = 1;
  const Trace trace = SyntheticTrace(synthetic);

  const ReplayResult result = MustReplay(trace, "lru", Options("25%"));

  // 4 layers: wait 150 us for the first, compute it in 20 us while the second
  // comes, wait 130 us for that.
  EXPECT_NEAR(StallSeconds(result), 4 * 280e-6, 1e-7);
}

TEST(ReplayTest, IsDeterministic) {
  const Trace trace = SyntheticTrace();

  const ReplayResult first = MustReplay(trace, "adaptive", Options("25%"));
  const ReplayResult second = MustReplay(trace, "adaptive", Options("25%"));

  EXPECT_EQ(first.total.stall, second.total.stall);
  EXPECT_EQ(first.total.prefetch_used_bytes, second.total.prefetch_used_bytes);
}

TEST(ReplayTest, ByteClassesAddUpToWhatWasLoaded) {
  const Trace trace = SyntheticTrace();
  for (const std::string_view policy : PolicyNames()) {
    const ReplayResult result = MustReplay(trace, policy, Options("25%"));

    const int64_t bytes =
        result.total.demand_bytes + result.total.prefetch_bytes();
    EXPECT_EQ(bytes, result.loads * trace.header.expert_bytes) << policy;
    EXPECT_GE(result.loads, 16) << policy;
    EXPECT_GE(result.total.prefetch_resident_bytes, 0) << policy;
  }
}

TEST(ReplayTest, EveryPolicyRunsAtTheSmallestBudgetAndOnSeveralRanks) {
  const Trace trace = SyntheticTrace({.num_steps = 60});
  for (const std::string_view policy : PolicyNames()) {
    ReplayOptions options = Options("200000");  // two slots
    options.num_ranks = 3;

    const ReplayResult result = MustReplay(trace, policy, options);

    EXPECT_EQ(result.total.accesses(), CountNeeds(trace)) << policy;
    EXPECT_EQ(result.total.prefetch_bytes(), 0) << policy;
  }
}

TEST(ReplayTest, TheOracleStallsLeast) {
  const Trace trace = SyntheticTrace();
  for (const char* memory : {"50%", "25%", "12.5%"}) {
    const double oracle =
        StallSeconds(MustReplay(trace, "oracle", Options(memory)));
    for (const std::string_view policy : PolicyNames()) {
      EXPECT_LE(oracle,
                StallSeconds(MustReplay(trace, policy, Options(memory))))
          << policy << " at " << memory;
    }
  }
}

TEST(ReplayTest, AdaptiveStallsLeastWhereTokensForetell) {
  const Trace trace = SyntheticTrace({.num_steps = 2000});
  const double lru = StallSeconds(MustReplay(trace, "lru", Options("25%")));
  const double oracle =
      StallSeconds(MustReplay(trace, "oracle", Options("25%")));

  const double adaptive =
      StallSeconds(MustReplay(trace, "adaptive", Options("25%")));

  EXPECT_LE(adaptive, lru - 0.2 * (lru - oracle));
  for (const std::string_view policy : PolicyNames()) {
    EXPECT_LE(adaptive,
              1.02 * StallSeconds(MustReplay(trace, policy, Options("25%"))))
        << policy;
  }
}

struct Adversary {
  const char* name;
  SyntheticOptions options;
};

class AdversarialTest : public ::testing::TestWithParam<Adversary> {};

TEST_P(AdversarialTest, AdaptiveIsNeverWorseThanLruByMoreThanNoise) {
  const Trace trace = SyntheticTrace(GetParam().options);
  for (const char* memory : {"50%", "25%", "12.5%"}) {
    for (const char* link : {"1GB/s,50us", "200MB/s,200us"}) {
      const double lru =
          StallSeconds(MustReplay(trace, "lru", Options(memory, link)));

      const double adaptive =
          StallSeconds(MustReplay(trace, "adaptive", Options(memory, link)));

      EXPECT_LE(adaptive, 1.02 * lru) << memory << " " << link;
    }
  }
}

// `batch` sequences decoded together, each as the options say but for its seed.
Trace BatchedTrace(SyntheticOptions options, int32_t batch) {
  std::vector<NamedTrace> sequences;
  for (int32_t i = 0; i < batch; ++i) {
    Trace trace = SyntheticTrace(options);
    trace.header.num_ranks = batch;
    for (TraceStep& step : trace.steps) {
      for (TraceSlice& slice : step.slices) {
        slice.rank = i;
        slice.sequence = slice.sequence * batch + i;
      }
    }
    sequences.push_back({absl::StrCat(i), std::move(trace)});
    ++options.seed;
  }
  Trace joined = *JoinTraces(std::move(sequences));
  joined.header.num_ranks = 1;
  return joined;
}

TEST_P(AdversarialTest, NorWithABatchOnSeveralRanks) {
  const Trace trace = BatchedTrace(GetParam().options, 4);
  for (const char* memory : {"50%", "25%"}) {
    for (const char* link : {"1GB/s,50us", "200MB/s,200us"}) {
      ReplayOptions options = Options(memory, link);
      options.num_ranks = 2;
      const absl::Duration lru = MustReplay(trace, "lru", options).lost();

      const absl::Duration adaptive =
          MustReplay(trace, "adaptive", options).lost();

      EXPECT_LE(adaptive, 1.02 * lru) << memory << " " << link;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Traces, AdversarialTest,
    ::testing::Values(
        Adversary{"UniformRouting", {.num_steps = 2000, .token_strength = 0}},
        Adversary{"UniformRoutingOneSequence",
                  {.num_steps = 2000,
                   .steps_per_sequence = 2000,
                   .seed = 5,
                   .token_strength = 0}},
        Adversary{"ShiftInTheMiddle", {.num_steps = 2000, .shift_at = 1000}},
        Adversary{"OneSequenceRepeating", {.num_steps = 2000, .repeat = true}},
        Adversary{"WithoutLookahead", {.num_steps = 2000, .lookahead = false}}),
    [](const auto& test) { return test.param.name; });

TEST(ReplayTest, PerfectDecisionsLeaveAdaptiveNoWorse) {
  const Trace trace = SyntheticTrace();
  for (const char* memory : {"50%", "25%", "12.5%"}) {
    const double own =
        StallSeconds(MustReplay(trace, "adaptive", Options(memory)));
    for (const char* part : {"prediction", "eviction", "admission"}) {
      const double perfect = StallSeconds(
          MustReplay(trace, absl::StrCat("adaptive+", part), Options(memory)));

      EXPECT_LE(perfect, own * 1.05) << part << " at " << memory;
    }
  }
}

TEST(ReplayTest, RefusesWhatItCannotReplay) {
  const Trace trace = SyntheticTrace({.num_steps = 1});

  const auto no_link = Replay(trace, "lru", ReplayOptions{}, nullptr);
  const auto no_policy = Replay(trace, "best", Options("25%"), nullptr);
  const auto too_small = Replay(trace, "lru", Options("100000"), nullptr);

  EXPECT_TRUE(absl::IsInvalidArgument(no_link.status()));
  EXPECT_THAT(no_policy.status().message(), testing::HasSubstr("adaptive"));
  EXPECT_TRUE(absl::IsInvalidArgument(too_small.status()))
      << too_small.status();
}

// What a file can hold must neither exhaust memory nor take for ever.
TEST(ReplayTest, AnExpertOfAnySizeIsLoadedInBoundedManyChunks) {
  for (const int64_t bytes : {int64_t{1} << 30, int64_t{1} << 36}) {
    Trace trace = SyntheticTrace({.num_steps = 20});
    trace.header.expert_bytes = bytes;

    const ReplayResult result = MustReplay(trace, "lru", Options("25%"));

    EXPECT_EQ(result.total.demand_bytes, result.total.misses * bytes);
  }
}

TEST(ReplayTest, AHistoryBeyondAllMemoryIsRefusedByName) {
  Trace trace = SyntheticTrace({.num_steps = 1});
  trace.header.num_layers = 1 << 12;
  trace.header.num_experts = 1 << 16;  // in a million of maps
  HistoryShape shape = HistoryShapeOf(trace.header);
  shape.iterations = 1 << 20;

  const absl::Status refused = CheckHistoryFits(shape);

  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()),
              testing::HasSubstr("--history-capacity"));
}

TEST(ReplayTest, RefusesTheHistoryOfAnotherModelNamingTheOddField) {
  const Trace trace = SyntheticTrace({.num_steps = 2});
  const HistoryShape own = HistoryShapeOf(trace.header);
  HistoryShape experts = own;
  experts.num_experts *= 2;
  HistoryShape layers = own;
  layers.num_layers -= 1;
  HistoryShape hidden = own;
  hidden.hidden = 0;
  HistoryShape chosen = own;
  chosen.top_k += 1;
  HistoryShape fingerprint = own;
  fingerprint.fingerprint += 1;
  const std::vector<std::pair<HistoryShape, std::string>> others = {
      {experts, "experts of a layer 16, wanted is 32"},
      {layers, "layers 4, wanted is 3"},
      {hidden, "hidden size 8, wanted is 0"},
      {chosen, "experts of a token 2, wanted is 3"},
      {fingerprint, "fingerprint 8, wanted is 9"}};
  for (const auto& [shape, message] : others) {
    History history(shape);

    const auto replayed = Replay(trace, "lru", Options("25%"), &history);
    const auto learnt = LearnTrace(trace, "adaptive", {}, history);

    for (const absl::Status& status : {replayed.status(), learnt}) {
      EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
      EXPECT_THAT(std::string(status.message()), testing::HasSubstr(message));
    }
  }
}

// The first rows of all maps that a small history learns from a trace.
std::vector<float> MapsLearnt(const Trace& trace, MapReplacement replacement) {
  HistoryShape shape = HistoryShapeOf(trace.header);
  shape.iterations = 8;
  shape.replacement = replacement;
  History history(shape);
  EXPECT_TRUE(LearnTrace(trace, "adaptive", {}, history).ok());
  const auto experts = static_cast<size_t>(trace.header.num_experts);
  std::vector<float> maps(8 * experts);
  for (int32_t record = 0; record < history.iterations().size(); ++record) {
    history.iterations().CopyRow(
        record, 0,
        std::span(maps).subspan(static_cast<size_t>(record) * experts,
                                experts));
  }
  return maps;
}

TEST(LearnTraceTest, WhatMapsForetoldDecidesWhichStayIfAskedFor) {
  const Trace trace = SyntheticTrace({.num_steps = 400});
  const std::vector<float> similarity =
      MapsLearnt(trace, MapReplacement::kSimilarity);

  const std::vector<float> usefulness =
      MapsLearnt(trace, MapReplacement::kUsefulness);

  EXPECT_NE(similarity, usefulness);
  EXPECT_EQ(usefulness, MapsLearnt(trace, MapReplacement::kUsefulness));
}

TEST(FirstOwnedExpertTest, CutsALayerIntoContiguousBlocks) {
  for (const int32_t experts : {7, 32, 60}) {
    for (int32_t ranks = 1; ranks <= 4; ++ranks) {
      for (int32_t e = 0; e < experts; ++e) {
        const int32_t owner = e * ranks / experts;
        EXPECT_GE(e, FirstOwnedExpert(owner, ranks, experts));
        EXPECT_LT(e, FirstOwnedExpert(owner + 1, ranks, experts));
      }
    }
  }
}

}  // namespace
}  // namespace portolan
