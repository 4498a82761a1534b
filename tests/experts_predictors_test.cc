// What foretells experts, and the parts it is made of.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "experts/hints.h"
#include "experts/history.h"
#include "experts/idle_times.h"
#include "experts/mixer.h"
#include "experts/policy_oracle.h"
#include "experts/prediction_score.h"
#include "experts/predictor_adaptive.h"
#include "experts/predictor_gate.h"
#include "experts/predictor_maps.h"
#include "experts/token_table.h"
#include "experts/use_rates.h"

namespace portolan {
namespace {

using testing::ElementsAre;
using testing::FloatNear;
using testing::IsEmpty;

constexpr absl::Time kNow = absl::UnixEpoch();
constexpr PredictorShape kShape{.num_layers = 3,
                                .num_experts = 4,
                                .top_k = 1,
                                .hidden = 2,
                                .max_step_tokens = 8};

History EmptyHistory(int32_t distance = 1) {
  return History({.num_layers = 3,
                  .num_experts = 4,
                  .top_k = 1,
                  .hidden = 2,
                  .iterations = 4,
                  .sequences = 4,
                  .token_ids = 16,
                  .distance = distance});
}

// One step of one sequence, as the engine drives a predictor.
class Step {
 public:
  Step(Predictor& predictor, std::vector<int32_t> tokens,
       std::vector<float> embeddings)
      : predictor_(predictor),
        tokens_(std::move(tokens)),
        embeddings_(std::move(embeddings)) {
    const SequenceSlice slice{.sequence = 1, .token_ids = tokens_};
    predictor_.BeginStep({.slices = {&slice, 1},
                          .embeddings = {embeddings_, std::ssize(tokens_), 2}});
  }

  // `rows` are probabilities of each token; the largest of a row is chosen.
  void Observe(int32_t layer, const std::vector<float>& rows,
               const std::vector<float>& ahead = {}) {
    std::vector<int32_t> chosen;
    for (size_t token = 0; token < tokens_.size(); ++token) {
      const auto row = rows.begin() + static_cast<std::ptrdiff_t>(token * 4);
      chosen.push_back(
          static_cast<int32_t>(std::max_element(row, row + 4) - row));
    }
    LayerObservation observation{
        .layer = layer,
        .probabilities = {rows, std::ssize(tokens_), 4},
        .experts = chosen};
    if (!ahead.empty()) observation.ahead1 = {ahead, std::ssize(tokens_), 4};
    predictor_.Observe(observation);
  }

  std::vector<float> Scores(int32_t layer, int32_t distance = 1) {
    std::vector<Fp16> scores(4);
    predictor_.Predict(layer, distance, scores);
    std::vector<float> values(4);
    std::ranges::transform(scores, values.begin(), ToFloat);
    return values;
  }

 private:
  Predictor& predictor_;
  std::vector<int32_t> tokens_;
  std::vector<float> embeddings_;
};

std::vector<MapScore> MapScores(const std::vector<float>& hints) {
  std::vector<MapScore> scores;
  for (const float hint : hints) scores.push_back(MapScoreOf(hint));
  return scores;
}

TEST(MergeHintsTest, SumsOrTakesTheLargestAndIgnoresNonsense) {
  const std::vector<Fp16> a = {ToFp16(0.5f), ToFp16(0.25f), ToFp16(-1.0f)};
  const std::vector<Fp16> b = {ToFp16(0.25f), ToFp16(1.0f),
                               ToFp16(std::nanf(""))};
  const std::span<const Fp16> sources[] = {a, b};
  std::vector<float> merged(3);

  MergeHints(HintMerge::kSum, sources, merged);
  EXPECT_THAT(merged, ElementsAre(0.75f, 1.25f, 0.0f));

  MergeHints(HintMerge::kMax, sources, merged);
  EXPECT_THAT(merged, ElementsAre(0.5f, 1.0f, 0.0f));
}

TEST(HintOfTest, HintsAddUpToTheChanceOfTheUnion) {
  EXPECT_NEAR(UnionProbability(HintOf(0.3f) + HintOf(0.5f)), 1 - 0.7f * 0.5f,
              1e-3);
  EXPECT_NEAR(UnionProbability(HintOf(0.0f)), 0, 1e-4);
  EXPECT_TRUE(std::isfinite(HintOf(1.0f)));
}

TEST(MapScoreTest, SurvivesHalfPrecisionAndTheMaximum) {
  for (const float p : {0.0009765625f, 0.25f, 1.0f}) {
    for (const bool selected : {false, true}) {
      const MapScore score{p, selected};
      EXPECT_EQ(MapScoreOf(ToFloat(ToFp16(HintOf(score)))), score);
    }
  }
  // A rank that selects an expert wins over one that only knows it.
  EXPECT_GT(HintOf(MapScore{0.0f, true}), HintOf(MapScore{1.0f, false}));
}

TEST(GatePredictorTest, CountsTheTopOfTheNextGateOverTokens) {
  const auto predictor = MakeGatePredictor(kShape, 1);
  EXPECT_EQ(predictor->lookahead(), 1);
  Step step(*predictor, {5, 6}, {1, 0, 0, 1});

  step.Observe(0, {1, 0, 0, 0, 1, 0, 0, 0},
               {0.1f, 0.6f, 0.3f, 0, 0.1f, 0.2f, 0.7f, 0});

  EXPECT_THAT(step.Scores(1), ElementsAre(0, 1, 1, 0));
  EXPECT_THAT(step.Scores(2), ElementsAre(0, 0, 0, 0));
}

TEST(GatePredictorTest, MeasuresItsPrecisionAndRecall) {
  const auto predictor = MakeGatePredictor(kShape, 1);
  Step step(*predictor, {5, 6}, {1, 0, 0, 1});
  step.Observe(0, {1, 0, 0, 0, 1, 0, 0, 0}, {0, 1, 0, 0, 0, 0, 1, 0});
  step.Observe(1, {0, 1, 0, 0, 0, 0, 0, 1});  // experts 1 and 3

  const PredictionMetrics metrics = predictor->metrics().front();

  EXPECT_EQ(metrics.predicted, 2);
  EXPECT_EQ(metrics.needed, 2);
  EXPECT_EQ(metrics.correct, 1);
}

// Teaches one iteration: layer l goes to expert l, with 0.7.
void TeachOneIteration(Predictor& predictor, std::vector<float> embedding) {
  Step step(predictor, {5}, std::move(embedding));
  step.Observe(0, {0.7f, 0.2f, 0.1f, 0});
  step.Observe(1, {0.2f, 0.7f, 0.1f, 0});
  step.Observe(2, {0.2f, 0.1f, 0.7f, 0});
  predictor.EndStep();
}

TEST(FmoePredictorTest, ASemanticMatchServesTheFirstLayers) {
  History history = EmptyHistory();
  const auto predictor = MakeFmoePredictor(kShape, 1, history);
  TeachOneIteration(*predictor, {1, 0});

  Step step(*predictor, {9}, {2, 0});  // the same direction

  // A certain match selects top-k experts; the whole row is told.
  const std::vector<MapScore> scores = MapScores(step.Scores(0));
  EXPECT_TRUE(scores[0].selected);
  EXPECT_NEAR(scores[0].probability, 0.7f, 1e-3);
  EXPECT_FALSE(scores[1].selected);
  EXPECT_NEAR(scores[1].probability, 0.2f, 1e-3);
  EXPECT_THAT(step.Scores(1), ElementsAre(0, 0, 0, 0));  // beyond d
}

TEST(FmoePredictorTest, ATrajectoryMatchServesTheLayerAfterNext) {
  History history = EmptyHistory();
  const auto predictor = MakeFmoePredictor(kShape, 1, history);
  TeachOneIteration(*predictor, {1, 0});
  Step step(*predictor, {9}, {0, 1});

  step.Observe(0, {0.7f, 0.2f, 0.1f, 0});

  const std::vector<MapScore> scores = MapScores(step.Scores(1));
  EXPECT_TRUE(scores[1].selected);
  EXPECT_NEAR(scores[1].probability, 0.7f, 1e-3);
}

TEST(FmoePredictorTest, AnUncertainMatchSelectsMore) {
  History history = EmptyHistory();
  const auto predictor = MakeFmoePredictor(kShape, 1, history);
  TeachOneIteration(*predictor, {1, 0});

  // Similarity 0.2: probabilities up to 0.8 are selected, 0.7 and 0.2.
  Step step(*predictor, {9}, {0.2f, std::sqrt(1 - 0.04f)});

  const std::vector<MapScore> scores = MapScores(step.Scores(0));
  EXPECT_TRUE(scores[0].selected);
  EXPECT_TRUE(scores[1].selected);
  EXPECT_FALSE(scores[2].selected);
}

TEST(FmoePredictorTest, CountsHowGoodItsMatchesAre) {
  History history = EmptyHistory();
  const auto predictor = MakeFmoePredictor(kShape, 1, history);
  TeachOneIteration(*predictor, {1, 0});
  EXPECT_EQ(predictor->match_scores()->sum(), 0) << "nothing to match";

  Step step(*predictor, {9}, {0.2f, std::sqrt(1 - 0.04f)});

  EXPECT_NEAR(predictor->match_scores()->sum(), 0.2, 1e-3);
  step.Observe(0, {0.7f, 0.2f, 0.1f, 0});
  EXPECT_NEAR(predictor->match_scores()->sum(), 1.2, 1e-3);
}

TEST(FmoePredictorTest, WithoutHistoryForetellsNothing) {
  History history = EmptyHistory();
  const auto predictor = MakeFmoePredictor(kShape, 1, history);

  Step step(*predictor, {9}, {1, 0});

  EXPECT_THAT(step.Scores(0), ElementsAre(0, 0, 0, 0));
}

TEST(EamPredictorTest, TheNearestFinishedSequenceForetellsByItsShares) {
  History history = EmptyHistory();
  const auto predictor = MakeEamPredictor(kShape, 3, history);
  TeachOneIteration(*predictor, {1, 0});
  predictor->EndSequence(1);
  ASSERT_EQ(history.sequences().size(), 1);
  {
    Step first(*predictor, {9}, {1, 0});
    EXPECT_THAT(first.Scores(0), ElementsAre(0, 0, 0, 0));  // a new sequence
  }
  TeachOneIteration(*predictor, {1, 0});

  Step step(*predictor, {9}, {1, 0});

  EXPECT_THAT(step.Scores(1), ElementsAre(0, 1, 0, 0));
  EXPECT_THAT(step.Scores(2), ElementsAre(0, 0, 1, 0));
}

TEST(AdaptivePredictorTest, LearnsATokenThatAlwaysGoesTheSameWay) {
  History history = EmptyHistory();
  const auto predictor = MakeAdaptivePredictor(kShape, history);
  EXPECT_TRUE(predictor->foretells_next_step());
  for (int i = 0; i < 50; ++i) TeachOneIteration(*predictor, {1, 0});

  Step step(*predictor, {5}, {1, 0});

  for (int32_t layer = 0; layer < 3; ++layer) {
    const std::vector<float> scores = step.Scores(layer, layer + 1);
    EXPECT_EQ(std::ranges::max_element(scores) - scores.begin(), layer);
    EXPECT_GT(UnionProbability(scores[static_cast<size_t>(layer)]), 0.8f);
  }
}

TEST(AdaptivePredictorTest, ARankWithoutTokensForetellsNothing) {
  History history = EmptyHistory();
  const auto predictor = MakeAdaptivePredictor(kShape, history);
  TeachOneIteration(*predictor, {1, 0});
  std::vector<Fp16> scores(4, ToFp16(1.0f));

  predictor->Predict(0, 1, scores);

  EXPECT_THAT(scores, testing::Each(Fp16{}));
}

TEST(MixerTest, FastLogarithmAndExponentialAreGoodToATenthOfAThousandth) {
  for (float x = 0.001f; x < 1000; x *= 1.3f) {
    EXPECT_NEAR(FastLog(x), std::log(x), 1e-4 + 1e-4 * std::abs(std::log(x)));
  }
  for (float x = -30; x < 30; x += 0.7f) {
    EXPECT_NEAR(FastExp(x) / std::exp(x), 1, 1e-4) << x;
  }
  EXPECT_NEAR(Squash(Stretch(0.3f)), 0.3f, 1e-3);
}

TEST(MixerTest, ASourceThatTellsTheTruthGainsAndOneThatLiesLoses) {
  Mixer mixer(3);
  std::mt19937 random(1);
  std::vector<float> probabilities(4);
  for (int i = 0; i < 2000; ++i) {
    std::vector<float> used(4, 0.0f);
    used[random() % 4] = 1;
    std::vector<float> inputs(12, 0.0f);
    for (size_t e = 0; e < 4; ++e) {
      inputs[e] = 1;                                              // the bias
      inputs[4 + e] = Stretch(used[e] > 0 ? 0.9f : 0.03f);        // truth
      inputs[8 + e] = Stretch(e == random() % 4 ? 0.9f : 0.03f);  // noise
    }
    const MatrixView<const float> view(inputs, 3, 4);
    mixer.Mix(view, probabilities);
    mixer.Learn(view, probabilities, used, 0.02f);
  }

  EXPECT_GT(mixer.weights()[1], 0.8f);
  EXPECT_LT(std::abs(mixer.weights()[2]), 0.3f);
}

TokenTable Table(int32_t capacity = 8) {
  return TokenTable(
      {.num_layers = 2, .num_experts = 4, .top_k = 1, .capacity = capacity});
}

TEST(TokenTableTest, CountsWhereATokenWent) {
  TokenTable table = Table();
  for (const int32_t expert : {1, 1, 3}) {
    table.Learn(7, std::vector<int32_t>{0, expert});
  }

  const TokenTable::Entry entry = table.Find(7, 1);

  EXPECT_EQ(entry.visits, 3);
  EXPECT_THAT(entry.counts, ElementsAre(0, 2, 0, 1));
  EXPECT_EQ(table.Find(8, 1).visits, 0);
  EXPECT_THAT(table.Find(8, 1).counts, IsEmpty());
}

TEST(TokenTableTest, HalvesBeforeACountOverflows) {
  TokenTable table = Table();
  for (int i = 0; i < 1000; ++i) table.Learn(7, std::vector<int32_t>{0, 1});

  const TokenTable::Entry entry = table.Find(7, 1);

  EXPECT_GE(entry.visits, 127);
  EXPECT_EQ(entry.counts[1], entry.visits);
  EXPECT_EQ(entry.counts[0], 0);
}

TEST(TokenTableTest, AFullTableGivesUpItsRarestToken) {
  TokenTable table = Table(8);  // all tokens compete for the same places
  for (int32_t token = 0; token < 8; ++token) {
    for (int32_t i = 0; i <= token; ++i) {
      table.Learn(token, std::vector<int32_t>{0, 0});
    }
  }

  table.Learn(99, std::vector<int32_t>{1, 1});

  EXPECT_EQ(table.Find(0, 0).visits, 0);
  EXPECT_EQ(table.Find(1, 0).visits, 2);
  EXPECT_EQ(table.Find(99, 0).visits, 1);
}

PolicyShape Owned(int32_t num_slots) {
  PolicyShape shape{.num_layers = 2,
                    .num_experts = 4,
                    .top_k = 1,
                    .num_slots = num_slots,
                    .expert_bytes = 1000};
  for (int32_t layer = 0; layer < 2; ++layer) {
    for (int32_t e = 0; e < 4; ++e) shape.owned.push_back({layer, e});
  }
  return shape;
}

TEST(UseRatesTest, FollowWhatTokensChooseAndForget) {
  UseRates rates(Owned(2));
  EXPECT_FLOAT_EQ(rates.rate(0), 0.25f);  // top-k of the experts
  const ExpertNeed need{.expert = 1, .num_rows = 1};

  for (int i = 0; i < 400; ++i) rates.OnVisit(0, {&need, 1}, 1);

  EXPECT_NEAR(rates.rate(1), 1, 0.01);
  EXPECT_NEAR(rates.rate(0), 0, 0.01);
  EXPECT_FLOAT_EQ(rates.rate(5), 0.25f);  // the other layer
}

TEST(UseRatesTest, APromptWeighsAsItsTokens) {
  UseRates one_by_one(Owned(2));
  UseRates at_once(Owned(2));
  const ExpertNeed single{.expert = 1, .num_rows = 1};
  const ExpertNeed prompt{.expert = 1, .num_rows = 10};

  for (int i = 0; i < 10; ++i) one_by_one.OnVisit(0, {&single, 1}, 1);
  at_once.OnVisit(0, {&prompt, 1}, 10);

  EXPECT_NEAR(one_by_one.rate(1), at_once.rate(1), 1e-4);
}

TEST(IdleTimesTest, TellsTheTimeToTheNextDemandBySizeOfStep) {
  IdleTimes idle;
  absl::Time now = absl::UnixEpoch();
  EXPECT_EQ(idle.Left(1, now), 0);
  for (int i = 0; i < 500; ++i) {
    idle.OnBeginLayer(1, now);
    idle.OnDemandLoaded(now + absl::Milliseconds(1));
    now += absl::Milliseconds(4);  // idle for 3
  }
  idle.OnBeginLayer(1, now);
  idle.OnDemandLoaded(now);

  EXPECT_NEAR(idle.Left(1, now), 0.003, 2e-4);
  EXPECT_NEAR(idle.Left(1, now + absl::Milliseconds(1)), 0.002, 2e-4);
  EXPECT_NEAR(idle.Left(1, now + absl::Seconds(1)), 0.0015, 2e-4);  // overdue
  EXPECT_EQ(idle.Left(512, now), 0);
}

TEST(PredictionScoreTest, ForetoldAreAsManyAsTheScoresExpect) {
  PredictionScore score("source", 2);

  score.Count(std::vector<float>{1, 0.6f, 0.4f, 0},
              std::vector<int32_t>{1, 0, 1, 0}, 1);

  EXPECT_EQ(score.metrics().predicted, 2);  // experts 0 and 1
  EXPECT_EQ(score.metrics().needed, 2);
  EXPECT_EQ(score.metrics().correct, 1);
  EXPECT_EQ(score.metrics().distance, 2);
}

// Misses of the best possible evictions, by trying all of them.
int FewestMisses(const std::vector<int32_t>& visits, size_t at,
                 std::vector<int32_t> held, size_t slots) {
  if (at == visits.size()) return 0;
  if (std::ranges::find(held, visits[at]) != held.end()) {
    return FewestMisses(visits, at + 1, held, slots);
  }
  if (held.size() < slots) {
    held.push_back(visits[at]);
    return 1 + FewestMisses(visits, at + 1, held, slots);
  }
  int fewest = 1 << 20;
  for (size_t victim = 0; victim < held.size(); ++victim) {
    std::vector<int32_t> next = held;
    next[victim] = visits[at];
    fewest = std::min(fewest, FewestMisses(visits, at + 1, next, slots));
  }
  return 1 + fewest;
}

TEST(OraclePolicyTest, EvictsAsWellAsTryingEverything) {
  std::mt19937 random(7);
  for (int round = 0; round < 20; ++round) {
    std::vector<int32_t> visits;
    Future future;
    for (int i = 0; i < 14; ++i) {
      visits.push_back(static_cast<int32_t>(random() % 5));
      future.visits.push_back({visits.back()});
    }
    PolicyShape shape{.num_layers = 1,
                      .num_experts = 5,
                      .top_k = 1,
                      .num_slots = 3,
                      .expert_bytes = 1000};
    for (int32_t e = 0; e < 5; ++e) shape.owned.push_back({0, e});
    const auto oracle = MakeOraclePolicy(shape, future);
    std::vector<ExpertId> held;
    int misses = 0;
    for (const int32_t expert : visits) {
      const ExpertId id{0, expert};
      const ExpertNeed need{.expert = expert, .num_rows = 1};
      oracle->OnBeginStep(1, kNow);
      oracle->OnBeginLayer(0, {&need, 1}, kNow);
      const bool hit = std::ranges::find(held, id) != held.end();
      oracle->OnAccess(id, hit ? AccessKind::kHit : AccessKind::kMiss, 1, kNow);
      if (!hit) {
        ++misses;
        if (std::ssize(held) == shape.num_slots) {
          const size_t victim = oracle->ChooseVictim(held, id, kNow);
          oracle->OnEvicted(held[victim], kNow);
          held.erase(held.begin() + static_cast<std::ptrdiff_t>(victim));
        }
        held.push_back(id);
        oracle->OnLoaded(id, ReadClass::kDemand, kNow);
      }
      oracle->OnEndLayer(0, absl::ZeroDuration(), kNow);
    }

    EXPECT_EQ(misses, FewestMisses(visits, 0, {}, 3)) << "round " << round;
  }
}

}  // namespace
}  // namespace portolan
