#include <gtest/gtest.h>

#include <vector>

#include "experts/use_rates.h"

namespace portolan {
namespace {

constexpr PolicyShape kShape{.num_layers = 2, .num_experts = 4, .top_k = 2};

TEST(UseRatesTest, APromptWeighsAsManyTokensAsItHas) {
  UseRates rates(kShape);
  const std::vector<ExpertNeed> all = {{1, 1000}};

  rates.OnVisit(0, all, 1000);

  EXPECT_NEAR(rates.rate(1), 1, 1e-3);
  EXPECT_NEAR(rates.rate(0), 0, 1e-3);
  EXPECT_EQ(rates.rate(5), 0.5f) << "another layer";
}

TEST(UseRatesTest, RoundsOfALayerAddUpToOneVisit) {
  UseRates whole(kShape);
  UseRates rounds(kShape);
  const std::vector<ExpertNeed> all = {{0, 3}, {1, 1}, {2, 4}};
  const std::vector<ExpertNeed> first = {{0, 2}, {2, 4}};
  const std::vector<ExpertNeed> second = {{0, 1}, {1, 1}};

  whole.OnVisit(1, all, 4);
  rounds.OnVisit(1, first, 4);
  rounds.AddNeeds(1, second, 4);

  for (size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(rounds.rate(i), whole.rate(i), 1e-6) << i;
  }
  EXPECT_GT(whole.rate(6), whole.rate(7));
}

}  // namespace
}  // namespace portolan
