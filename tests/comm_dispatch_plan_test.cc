#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "comm/dispatch_plan.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr Rank kA{0}, kB{1}, kC{2};

TEST(DispatchPlanTest, SendsOneRowPerTokenAndDestination) {
  const std::vector<Rank> owner = {kA, kB, kB, kC};
  const std::vector<int32_t> experts = {1, 2, 3,   // token 0: B, B, C
                                        0, 1, 2};  // token 1: A, B, B
  const std::vector<float> weights = {.1f, .2f, .3f, .4f, .5f, .6f};
  const Routing routing{2, 3, experts, weights};

  DispatchPlan plan;
  PlanDispatch(routing, 0, 2, owner, 3, plan);

  EXPECT_THAT(plan.row_begin, ElementsAre(0, 1, 3, 4));
  EXPECT_THAT(plan.tokens, ElementsAre(1, 0, 1, 0));
  EXPECT_THAT(plan.selection_begin, ElementsAre(0, 1, 5, 6));
  EXPECT_THAT(plan.experts, ElementsAre(0, 1, 2, 1, 2, 3));
  EXPECT_THAT(plan.row_of, ElementsAre(0, 0, 0, 1, 1, 0));
  EXPECT_THAT(plan.weights, ElementsAre(.4f, .1f, .2f, .5f, .6f, .3f));
  EXPECT_THAT(plan.slot_of, ElementsAre(1, 2, 5, 0, 3, 4));
}

TEST(DispatchPlanTest, PlansOnlyTheTokensOfARound) {
  const std::vector<Rank> owner = {kA, kB};
  const std::vector<int32_t> experts = {0, 1, 1, 0};
  const std::vector<float> weights(4);
  const Routing routing{4, 1, experts, weights};

  DispatchPlan plan;
  PlanDispatch(routing, 1, 2, owner, 2, plan);

  EXPECT_THAT(plan.tokens, ElementsAre(1, 2));
  EXPECT_EQ(plan.num_rows(kA), 0);
  EXPECT_EQ(plan.num_rows(kB), 2);
}

TEST(DispatchPlanTest, NoTokensGiveAnEmptyPlan) {
  const std::vector<Rank> owner = {kA, kB};
  DispatchPlan plan;
  const std::vector<int32_t> experts = {0};
  const std::vector<float> weights = {1};
  PlanDispatch({1, 1, experts, weights}, 0, 1, owner, 2, plan);

  PlanDispatch({}, 0, 0, owner, 2, plan);

  EXPECT_THAT(plan.row_begin, ElementsAre(0, 0, 0));
  EXPECT_TRUE(plan.tokens.empty());
  EXPECT_TRUE(plan.slot_of.empty());
}

TEST(CheckRoutingTest, RefusesAnExpertThatDoesNotExist) {
  const std::vector<int32_t> experts = {0, 4};
  const std::vector<float> weights(2);

  const absl::Status status = CheckRouting({1, 2, experts, weights}, 4);

  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("expert 4"));
}

TEST(CheckRoutingTest, RefusesSpansOfAnotherSize) {
  const std::vector<int32_t> experts = {0, 1};
  const std::vector<float> weights(1);

  EXPECT_TRUE(
      absl::IsInvalidArgument(CheckRouting({1, 2, experts, weights}, 4)));
}

}  // namespace
}  // namespace portolan
