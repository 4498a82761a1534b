#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "runtime/model/logprobs.h"

namespace portolan {
namespace {

// By the definition, in double and with the whole vocabulary sorted.
std::vector<TokenLogprob> Reference(const std::vector<float>& logits,
                                    int32_t chosen, int32_t num_top) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});
  const auto logprob = [&](int32_t token) {
    return static_cast<float>(double{logits[static_cast<size_t>(token)]} -
                              std::log(sum));
  };
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  std::vector<TokenLogprob> out = {{chosen, logprob(chosen)}};
  for (int32_t i = 0; i < num_top; ++i) {
    const int32_t token = order[static_cast<size_t>(i)];
    out.push_back({token, logprob(token)});
  }
  return out;
}

TEST(LogprobsTest, EqualThoseOfTheDefinition) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 4);
  std::vector<TokenLogprob> got;
  for (int round = 0; round < 20; ++round) {
    std::vector<float> logits(777);
    for (float& logit : logits) logit = normal(random);
    logits[5] = logits[600] = 9;  // a tie
    const int32_t chosen = round * 7;

    ComputeLogprobs(logits, chosen, 5, got);

    const std::vector<TokenLogprob> want = Reference(logits, chosen, 5);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].token, want[i].token);
      EXPECT_NEAR(got[i].logprob, want[i].logprob, 1e-4);
    }
  }
}

TEST(LogprobsTest, ZeroGivesTheChosenTokenAlone) {
  std::vector<TokenLogprob> got;
  ComputeLogprobs(std::vector<float>{0, 0, 0, 0}, 2, 0, got);

  ASSERT_EQ(got.size(), 1u);
  EXPECT_EQ(got[0].token, 2);
  EXPECT_NEAR(got[0].logprob, -std::log(4.0), 1e-6);
}

TEST(LogprobsTest, AVocabularySmallerThanAskedForIsGivenWhole) {
  std::vector<TokenLogprob> got;
  ComputeLogprobs(std::vector<float>{1, 2}, 0, 5, got);

  ASSERT_EQ(got.size(), 3u);
  EXPECT_EQ(got[1].token, 1);
  EXPECT_EQ(got[2].token, 0);
}

}  // namespace
}  // namespace portolan
