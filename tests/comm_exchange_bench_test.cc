#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "comm/exchange_bench.h"
#include "comm/local_world.h"

namespace portolan {
namespace {

const std::vector<Rank> kOwner = {Rank{0}, Rank{0}, Rank{0},
                                  Rank{1}, Rank{1}, Rank{1}};

MadeRouting Make(RoutingPattern pattern, int rank) {
  return MakeRouting(
      {.pattern = pattern, .num_tokens = 200, .top_k = 2, .seed = 3}, kOwner, 2,
      Rank{rank});
}

TEST(RoutingPatternTest, EveryTokenGetsDifferentExpertsWithWeightsOfSumOne) {
  const MadeRouting made = Make(RoutingPattern::kUniform, 1);

  ASSERT_EQ(made.experts.size(), 400u);
  for (size_t i = 0; i < 400; i += 2) {
    EXPECT_NE(made.experts[i], made.experts[i + 1]);
    EXPECT_NEAR(made.weights[i] + made.weights[i + 1], 1, 1e-6);
  }
  const std::set<int32_t> used(made.experts.begin(), made.experts.end());
  EXPECT_EQ(used.size(), 6u);
}

TEST(RoutingPatternTest, ZipfPrefersTheFirstExperts) {
  const MadeRouting made = Make(RoutingPattern::kZipf, 0);

  const auto count = [&](int32_t expert) {
    return std::count(made.experts.begin(), made.experts.end(), expert);
  };
  EXPECT_GT(count(0), 2 * count(5));
}

TEST(RoutingPatternTest, AllToOneStaysOnRankZero) {
  const MadeRouting made = Make(RoutingPattern::kAllToOne, 1);

  EXPECT_LT(*std::max_element(made.experts.begin(), made.experts.end()), 3);
}

TEST(RoutingPatternTest, TheEmptyRankSendsAndReceivesNothing) {
  EXPECT_EQ(Make(RoutingPattern::kOneEmptyRank, 1).num_tokens, 0);
  const MadeRouting made = Make(RoutingPattern::kOneEmptyRank, 0);
  EXPECT_LT(*std::max_element(made.experts.begin(), made.experts.end()), 3);
}

TEST(RoutingPatternTest, NamesParseBack) {
  EXPECT_EQ(ParseRoutingPattern("zipf").value(), RoutingPattern::kZipf);
  EXPECT_TRUE(absl::IsInvalidArgument(ParseRoutingPattern("zip").status()));
}

ExchangeBenchResult RunBench(int world_size,
                             const ExchangeBenchConfig& config) {
  ExchangeBenchResult of_rank_zero;
  const absl::Status status =
      RunLocalWorld(world_size, [&](Transport& transport) {
        const auto result = RunExchangeBench(transport, config);
        if (result.ok() && transport.rank() == Rank{0}) of_rank_zero = *result;
        return result.status();
      });
  EXPECT_TRUE(status.ok()) << status;
  return of_rank_zero;
}

ExchangeBenchConfig Small() {
  ExchangeBenchConfig config;
  config.tokens_per_rank = 16;
  config.hidden = 64;
  config.num_experts = 8;
  config.top_k = 2;
  config.warmup = 1;
  config.iterations = 3;
  return config;
}

TEST(ExchangeBenchTest, EveryPatternAndModeIsRight) {
  for (const RoutingPattern pattern :
       {RoutingPattern::kUniform, RoutingPattern::kZipf,
        RoutingPattern::kAllToOne, RoutingPattern::kOneEmptyRank}) {
    for (const CombineMode mode :
         {CombineMode::kExact, CombineMode::kReduced}) {
      ExchangeBenchConfig config = Small();
      config.pattern = pattern;
      config.combine = mode;

      EXPECT_EQ(RunBench(3, config).num_wrong, 0) << ToString(pattern);
    }
  }
}

TEST(ExchangeBenchTest, CountsBytesByTheRule) {
  ExchangeBenchConfig config = Small();
  config.pattern = RoutingPattern::kAllToOne;

  const ExchangeBenchResult result = RunBench(2, config);

  // 16 rows of bf16 to rank 0, 32 rows of f32 back, both of 64 values.
  EXPECT_EQ(result.largest_bytes, 16 * 128 + 32 * 256);
  EXPECT_EQ(result.tokens, 32);
  EXPECT_DOUBLE_EQ(result.balancedness, 0.5);
  EXPECT_DOUBLE_EQ(result.busbw, result.algbw / 2);
  EXPECT_EQ(result.messages, 3);  // two headers, one combine
  EXPECT_EQ(result.rounds, 1);
}

TEST(ExchangeBenchTest, RefusesMoreSelectionsThanExperts) {
  ExchangeBenchConfig config = Small();
  config.top_k = 9;

  EXPECT_TRUE(absl::IsInvalidArgument(config.Validate()));
}

}  // namespace
}  // namespace portolan
