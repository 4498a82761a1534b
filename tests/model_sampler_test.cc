#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "runtime/model/philox.h"
#include "runtime/model/sampler.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The published test vectors of Random123 (kat_vectors, philox4x32 10).
TEST(PhiloxTest, MatchesThePublishedVectors) {
  EXPECT_THAT(Philox4x32(0, {0, 0, 0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(Philox4x32(~uint64_t{0}, {~0u, ~0u, ~0u, ~0u}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(Philox4x32(0x299f31d0a4093822,
                         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

std::map<int32_t, int> Histogram(const std::vector<float>& logits,
                                 SamplingParams params, int draws) {
  Sampler sampler(static_cast<int32_t>(logits.size()));
  std::map<int32_t, int> histogram;
  for (int i = 0; i < draws; ++i) {
    params.seed = static_cast<uint64_t>(i);
    ++histogram[sampler.Sample(logits, params, {}, 0)];
  }
  return histogram;
}

std::set<int32_t> Support(const std::vector<float>& logits,
                          const SamplingParams& params) {
  std::set<int32_t> support;
  for (const auto& [token, count] : Histogram(logits, params, 4000)) {
    support.insert(token);
  }
  return support;
}

TEST(SamplerTest, TemperatureZeroTakesTheLargestAndTiesGoToTheLowerId) {
  Sampler sampler(4);
  SamplingParams greedy;
  greedy.temperature = 0;

  EXPECT_EQ(sampler.Sample(std::vector<float>{1, 3, 3, 2}, greedy, {}, 0), 1);
}

TEST(SamplerTest, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits = {0, std::log(2.0f), std::log(5.0f)};

  const auto histogram = Histogram(logits, {}, 40000);

  EXPECT_NEAR(histogram.at(0) / 40000.0, 1 / 8.0, 0.01);
  EXPECT_NEAR(histogram.at(1) / 40000.0, 2 / 8.0, 0.01);
  EXPECT_NEAR(histogram.at(2) / 40000.0, 5 / 8.0, 0.01);
}

TEST(SamplerTest, TemperatureSharpens) {
  SamplingParams cold;
  cold.temperature = 0.5;
  const auto histogram = Histogram({0, std::log(2.0f)}, cold, 40000);

  EXPECT_NEAR(histogram.at(1) / 40000.0, 4 / 5.0, 0.01);
}

TEST(SamplerTest, TopKKeepsTheKLargestAndTiesGoToTheLowerId) {
  SamplingParams params;
  params.top_k = 2;
  EXPECT_THAT(Support({1, 2, 2, 2, 0}, params), ElementsAre(1, 2));
}

TEST(SamplerTest, TopPKeepsTheSmallestSetThatReachesP) {
  SamplingParams params;
  params.top_p = 0.70;  // 0.5, then 0.25 crosses it
  EXPECT_THAT(Support({std::log(2.0f), std::log(4.0f), 0, 0}, params),
              ElementsAre(0, 1));
}

TEST(SamplerTest, TopPOverALargeVocabularySortsNoMoreThanNeeded) {
  std::vector<float> logits(5000, 0.0f);
  logits[4321] = 30;
  SamplingParams params;
  params.top_p = 0.9;
  EXPECT_THAT(Support(logits, params), ElementsAre(4321));
}

TEST(SamplerTest, MinPDropsWhatIsFarBelowTheBest) {
  SamplingParams params;
  params.min_p = 0.3;
  EXPECT_THAT(Support({0, std::log(4.0f), std::log(2.0f)}, params),
              ElementsAre(1, 2));
}

TEST(SamplerTest, TheDrawDependsOnSeedAndPositionAlone) {
  const std::vector<float> logits(64, 0.0f);
  Sampler sampler(64);
  SamplingParams params;
  params.seed = 7;
  const std::vector<int32_t> context(11, 0);

  const int32_t first = sampler.Sample(logits, params, context, 3);
  params.seed = 8;
  sampler.Sample(logits, params, context, 3);
  params.seed = 7;

  EXPECT_EQ(sampler.Sample(logits, params, context, 3), first);
}

TEST(SamplerTest, PenaltiesLowerWhatWasSaid) {
  Sampler sampler(3);
  SamplingParams params;
  params.temperature = 0;
  const std::vector<float> logits = {2.0f, 1.5f, 1.0f};

  params.repetition_penalty = 1.5;
  EXPECT_EQ(sampler.Sample(logits, params, std::vector<int32_t>{0}, 1), 1);
  params.repetition_penalty = 1;
  params.presence_penalty = 1;  // the prompt does not count
  EXPECT_EQ(sampler.Sample(logits, params, std::vector<int32_t>{0}, 1), 0);
  EXPECT_EQ(sampler.Sample(logits, params, std::vector<int32_t>{0, 0}, 1), 1);
  params.presence_penalty = 0;
  params.frequency_penalty = 0.3;
  EXPECT_EQ(sampler.Sample(logits, params, std::vector<int32_t>{2, 0, 0}, 1),
            1);
}

// The penalties by their definitions, token by token over the vocabulary.
std::vector<float> Penalized(std::vector<float> logits,
                             const SamplingParams& params,
                             const std::vector<int32_t>& context,
                             int64_t num_prompt) {
  for (size_t token = 0; token < logits.size(); ++token) {
    const auto id = static_cast<int32_t>(token);
    const auto seen = std::count(context.begin(), context.end(), id);
    const auto said =
        std::count(context.begin() + num_prompt, context.end(), id);
    const auto repetition = static_cast<float>(params.repetition_penalty);
    float& logit = logits[token];
    if (seen > 0) logit = logit > 0 ? logit / repetition : logit * repetition;
    if (said > 0) logit -= static_cast<float>(params.presence_penalty);
    for (int64_t i = 0; i < said; ++i) {
      logit -= static_cast<float>(params.frequency_penalty);
    }
  }
  return logits;
}

TEST(SamplerTest, PenaltiesDrawAsFromLogitsThatAreLoweredBeforehand) {
  constexpr int32_t kVocab = 97;
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0, 3);
  std::uniform_int_distribution<int32_t> any_token(0, 20);
  Sampler sampler(kVocab);
  SamplingParams plain;
  for (int round = 0; round < 200; ++round) {
    std::vector<float> logits(kVocab);
    for (float& logit : logits) logit = normal(random);
    std::vector<int32_t> context(40);
    for (int32_t& token : context) token = any_token(random);
    plain.seed = static_cast<uint64_t>(round);
    plain.temperature = round % 3 == 0 ? 0 : 0.8;
    plain.top_p = round % 2 == 0 ? 1 : 0.9;
    SamplingParams params = plain;
    params.repetition_penalty = 1.3;
    params.presence_penalty = 0.4;
    params.frequency_penalty = -0.2;

    const int32_t token = sampler.Sample(logits, params, context, 15);

    EXPECT_EQ(token, sampler.Sample(Penalized(logits, params, context, 15),
                                    plain, context, 15));
  }
}

TEST(SamplerTest, RefusalsNameTheField) {
  SamplingParams params;
  params.top_p = 0;
  EXPECT_THAT(std::string(ValidateSampling(params).message()),
              HasSubstr("top_p"));
  params = {};
  params.temperature = -1;
  EXPECT_THAT(std::string(ValidateSampling(params).message()),
              HasSubstr("temperature"));
  params = {};
  params.min_p = std::nan("");
  EXPECT_THAT(std::string(ValidateSampling(params).message()),
              HasSubstr("min_p"));
  EXPECT_TRUE(ValidateSampling({}).ok());
}

}  // namespace
}  // namespace portolan
