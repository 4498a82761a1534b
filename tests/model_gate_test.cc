#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "runtime/model/gate.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;

struct Choice {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Choice Choose(const std::vector<float>& row, GateRule rule) {
  Choice choice{std::vector<int32_t>(static_cast<size_t>(rule.top_k)),
                std::vector<float>(static_cast<size_t>(rule.top_k))};
  ChooseExperts({row, 1, static_cast<int64_t>(row.size())}, rule,
                choice.experts, choice.weights);
  return choice;
}

TEST(GateTest, ChoosesTheLargestInDescendingOrder) {
  const Choice choice = Choose({0.1f, 0.4f, 0.2f, 0.3f}, {2, false});

  EXPECT_THAT(choice.experts, ElementsAre(1, 3));
  EXPECT_THAT(choice.weights, ElementsAre(0.4f, 0.3f));
}

TEST(GateTest, TiesGoToTheLowerId) {
  EXPECT_THAT(Choose({0.2f, 0.3f, 0.3f, 0.2f}, {3, false}).experts,
              ElementsAre(1, 2, 0));
}

TEST(GateTest, NormalisedWeightsSumToOne) {
  EXPECT_THAT(Choose({0.1f, 0.4f, 0.1f, 0.4f}, {2, true}).weights,
              ElementsAre(FloatEq(0.5f), FloatEq(0.5f)));
}

TEST(GateTest, CanChooseEveryExpert) {
  EXPECT_THAT(Choose({0.2f, 0.5f, 0.3f}, {3, false}).experts,
              ElementsAre(1, 2, 0));
}

TEST(GateTest, EveryTokenChoosesForItself) {
  const std::vector<float> rows = {0.9f, 0.1f, 0.3f, 0.7f};
  std::vector<int32_t> experts(2);
  std::vector<float> weights(2);

  ChooseExperts({rows, 2, 2}, {1, false}, experts, weights);

  EXPECT_THAT(experts, ElementsAre(0, 1));
  EXPECT_THAT(weights, ElementsAre(0.9f, 0.7f));
}

}  // namespace
}  // namespace portolan
