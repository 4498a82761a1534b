#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "experts/dot_rows.h"
#include "experts/expert_map_store.h"
#include "experts/hints.h"
#include "experts/history.h"
#include "experts/predictor_maps.h"
#include "experts/trajectory_search.h"

namespace portolan {
namespace {

constexpr int32_t kLayers = 5;
constexpr int32_t kExperts = 7;
constexpr int32_t kDim = 6;
constexpr int32_t kTopK = 2;

ExpertMapStore::Shape Shape(int32_t capacity) {
  return {.capacity = capacity,
          .embedding_dim = kDim,
          .num_layers = kLayers,
          .num_experts = kExperts};
}

// An iteration: an embedding and a map whose rows sum to 1.
struct Record {
  std::vector<float> embedding;
  std::vector<float> map;

  std::span<const float> Row(int32_t layer) const {
    return std::span(map).subspan(static_cast<size_t>(layer) * kExperts,
                                  kExperts);
  }
  MatrixView<const float> View() const { return {map, kLayers, kExperts}; }
};

std::vector<Record> Records(int32_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<Record> records(static_cast<size_t>(count));
  for (Record& record : records) {
    for (int32_t i = 0; i < kDim; ++i)
      record.embedding.push_back(normal(random));
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      float sum = 0;
      for (int32_t e = 0; e < kExperts; ++e) {
        record.map.push_back(std::exp(2 * normal(random)));
        sum += record.map.back();
      }
      for (auto p = record.map.end() - kExperts; p != record.map.end(); ++p) {
        *p /= sum;
      }
    }
  }
  return records;
}

double Cosine(std::span<const float> a, std::span<const float> b) {
  double dot = 0;
  double aa = 0;
  double bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    dot += static_cast<double>(a[i]) * b[i];
    aa += static_cast<double>(a[i]) * a[i];
    bb += static_cast<double>(b[i]) * b[i];
  }
  return dot / std::sqrt(aa * bb);
}

// Of the first `layers` rows.
double TrajectoryCosine(const Record& a, const Record& b, int32_t layers) {
  const auto cells = static_cast<size_t>(layers) * kExperts;
  return Cosine(std::span(a.map).first(cells), std::span(b.map).first(cells));
}

template <typename Score>
size_t ArgMax(const std::vector<Record>& records, Score score) {
  size_t best = 0;
  for (size_t i = 1; i < records.size(); ++i) {
    if (score(records[i]) > score(records[best])) best = i;
  }
  return best;
}

TEST(DotRowsTest, EqualsASlowSumOnEveryPath) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const size_t cols : {size_t{16}, size_t{32}, size_t{192}}) {
    std::vector<float> rows(9 * cols);
    std::vector<float> query(cols);
    for (float& value : rows) value = normal(random);
    for (float& value : query) value = normal(random);
    std::vector<float> out(9, 0.5f);

    DotRows(rows.data(), cols, 9, query, out.data());

    for (size_t r = 0; r < 9; ++r) {
      double sum = 0.5;
      for (size_t c = 0; c < cols; ++c) {
        sum += static_cast<double>(rows[r * cols + c]) * query[c];
      }
      EXPECT_NEAR(out[r], sum, 1e-4);
    }
  }
}

TEST(ExpertMapStoreTest, FindsTheNearestEmbeddingAsBruteForceDoes) {
  const std::vector<Record> records = Records(50, 2);
  ExpertMapStore store(Shape(50));
  for (const Record& record : records) {
    store.Add(record.embedding, record.View());
  }
  for (const Record& query : Records(20, 3)) {
    const auto score = [&](const Record& record) {
      return Cosine(record.embedding, query.embedding);
    };

    const auto match = store.MatchEmbedding(query.embedding);

    ASSERT_TRUE(match.has_value());
    const size_t best = ArgMax(records, score);
    EXPECT_EQ(match->record, static_cast<int32_t>(best));
    EXPECT_NEAR(match->similarity, score(records[best]), 1e-5);
  }
}

TEST(TrajectorySearchTest, LayerByLayerEqualsBruteForceOverThePrefix) {
  const std::vector<Record> records = Records(50, 4);
  ExpertMapStore store(Shape(50));
  for (const Record& record : records) {
    store.Add(record.embedding, record.View());
  }
  TrajectorySearch search(store);
  for (const Record& query : Records(20, 5)) {
    search.Begin();
    EXPECT_FALSE(search.Best().has_value());
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      const auto score = [&](const Record& record) {
        return TrajectoryCosine(record, query, layer + 1);
      };

      search.Extend(layer, query.Row(layer));

      const auto match = search.Best();
      ASSERT_TRUE(match.has_value());
      const size_t best = ArgMax(records, score);
      EXPECT_EQ(match->record, static_cast<int32_t>(best)) << layer;
      EXPECT_NEAR(match->similarity, score(records[best]), 1e-5);
    }
  }
}

TEST(ExpertMapStoreTest, AFullStoreReplacesTheMostSimilarAsPublished) {
  std::vector<Record> records = Records(12, 6);
  ExpertMapStore store(Shape(12));
  for (const Record& record : records) {
    store.Add(record.embedding, record.View());
  }
  for (const Record& added : Records(20, 7)) {
    const size_t redundant = ArgMax(records, [&](const Record& record) {
      const double d = 3.0 / kLayers;
      return d * Cosine(record.embedding, added.embedding) +
             (1 - d) * TrajectoryCosine(record, added, kLayers);
    });

    const int32_t place = store.Add(added.embedding, added.View());

    EXPECT_EQ(place, static_cast<int32_t>(redundant));
    EXPECT_EQ(store.size(), 12);
    records[redundant] = added;
  }
}

TEST(ExpertMapStoreTest, ByUsefulnessTheProvenRecordStays) {
  ExpertMapStore::Shape shape = Shape(2);
  shape.replacement = MapReplacement::kUsefulness;
  ExpertMapStore store(shape);
  const std::vector<Record> records = Records(3, 8);
  store.Add(records[0].embedding, records[0].View());
  store.Add(records[1].embedding, records[1].View());
  for (int i = 0; i < 10; ++i) store.Reward(0, 1.0f);
  for (int i = 0; i < 10; ++i) store.Reward(1, 0.0f);

  // As like the first as can be, which would go by similarity.
  EXPECT_EQ(store.Add(records[0].embedding, records[0].View()), 1);
}

TEST(ExpertMapStoreTest, TellsWhatARecordWouldHaveForetold) {
  ExpertMapStore store(Shape(2));
  const std::vector<Record> records = Records(2, 8);
  const auto num_experts = static_cast<size_t>(store.shape().num_experts);
  store.Add(records[0].embedding, records[0].View());
  EXPECT_EQ(store.ForetoldShare(0, records[0].View(), 2), 1.0f);

  // The largest of each row changes places with the smallest.
  Record turned = records[0];
  for (size_t begin = 0; begin < turned.map.size(); begin += num_experts) {
    const auto row = std::span(turned.map).subspan(begin, num_experts);
    std::vector<size_t> order(num_experts);
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::sort(order, {}, [&](size_t e) { return row[e]; });
    std::swap(row[order[0]], row[order[num_experts - 1]]);
    EXPECT_GT(row[order[0]], 0);
  }
  EXPECT_EQ(store.ForetoldShare(0, turned.View(), 2), 0.5f);
}

TEST(ExpertMapStoreTest, CollectsTheSharedRecordsThatWereOfUse) {
  ExpertMapStore store(Shape(2));
  const std::vector<Record> records = Records(3, 8);
  store.SetSharedId(store.Add(records[0].embedding, records[0].View()), 70);
  store.Add(records[1].embedding, records[1].View());

  store.Reward(0, 0.9f);
  store.Reward(0, 0.1f);
  store.Reward(1, 0.9f);  // this rank's own
  store.Reward(0, 0.5f);
  EXPECT_THAT(store.useful(), ::testing::ElementsAre(70, 70));

  store.ClearUseful();
  // Its place goes to a record of this rank.
  EXPECT_EQ(store.Add(records[0].embedding, records[0].View()), 0);
  store.Reward(0, 1.0f);
  EXPECT_THAT(store.useful(), ::testing::IsEmpty());

  store.SetSharedId(0, 71);
  for (int i = 0; i < 10'000; ++i) store.Reward(0, 1.0f);
  EXPECT_LE(store.useful().size(), 1000u);
}

TEST(ExpertMapStoreTest, CompactRowsKeepTheLargestWithinAStepOfTheirScale) {
  ExpertMapStore::Shape shape = Shape(10);
  shape.format = MapFormat::kCompact;
  shape.top_m = 3;
  ExpertMapStore store(shape);
  const std::vector<Record> records = Records(10, 9);
  for (const Record& record : records) {
    store.Add(record.embedding, record.View());
  }
  std::vector<float> row(kExperts);
  for (size_t r = 0; r < records.size(); ++r) {
    const std::span<const float> exact = records[r].Row(2);
    std::vector<float> sorted(exact.begin(), exact.end());
    std::ranges::sort(sorted, std::greater<>());

    store.CopyRow(static_cast<int32_t>(r), 2, row);

    for (size_t e = 0; e < row.size(); ++e) {
      const float kept = exact[e] >= sorted[2] ? exact[e] : 0.0f;
      EXPECT_NEAR(row[e], kept, sorted[0] / 255);
    }
  }
  EXPECT_LT(store.bytes(), ExpertMapStore(Shape(10)).bytes());
}

TEST(ExpertMapStoreTest, CompactTrajectoriesFindThemselves) {
  ExpertMapStore::Shape shape = Shape(10);
  shape.format = MapFormat::kCompact;
  shape.top_m = 4;
  ExpertMapStore store(shape);
  const std::vector<Record> records = Records(10, 10);
  for (const Record& record : records) {
    store.Add(record.embedding, record.View());
  }
  TrajectorySearch search(store);
  for (size_t r = 0; r < records.size(); ++r) {
    search.Begin();
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      search.Extend(layer, records[r].Row(layer));
    }

    EXPECT_EQ(search.Best()->record, static_cast<int32_t>(r));
  }
}

// The published predictor, written out slowly: what a token's best match says
// of each expert and which it selects, by delta = clip(1 - score, 0, 1) and at
// least top-k.
std::vector<MapScore> SlowSelection(const Record& matched, double score,
                                    int32_t layer) {
  const double delta = std::clamp(1.0 - score, 0.0, 1.0);
  std::vector<int32_t> order(kExperts);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::greater<>(), [&](int32_t e) {
    return matched.Row(layer)[static_cast<size_t>(e)];
  });
  std::vector<MapScore> scores;
  for (const float p : matched.Row(layer)) scores.push_back({p, false});
  double sum = 0;
  for (int32_t n = 0; n < kExperts && (n < kTopK || sum < delta); ++n) {
    const auto e = static_cast<size_t>(order[static_cast<size_t>(n)]);
    scores[e].selected = true;
    sum += scores[e].probability;
  }
  return scores;
}

std::vector<MapScore> UnionOf(std::vector<MapScore> a,
                              const std::vector<MapScore>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    a[i].probability = std::max(a[i].probability, b[i].probability);
    a[i].selected = a[i].selected || b[i].selected;
  }
  return a;
}

class FmoePredictorTest : public ::testing::Test {
 protected:
  static constexpr int32_t kDistance = 2;

  FmoePredictorTest()
      : history_({.num_layers = kLayers,
                  .num_experts = kExperts,
                  .top_k = kTopK,
                  .hidden = kDim,
                  .iterations = 30,
                  .sequences = 2,
                  .token_ids = 16}),
        records_(Records(30, 11)),
        queries_(Records(2, 12)),
        predictor_(MakeFmoePredictor({.num_layers = kLayers,
                                      .num_experts = kExperts,
                                      .top_k = kTopK,
                                      .hidden = kDim,
                                      .max_step_tokens = 4},
                                     kDistance, history_)) {
    for (const Record& record : records_) {
      history_.iterations().Add(record.embedding, record.View());
    }
  }

  // A step of two tokens, each a sequence of its own.
  void Begin() {
    const std::vector<int32_t> ids = {1, 2};
    const std::vector<SequenceSlice> slices = {
        {.sequence = 1, .token_ids = std::span(ids).first(1)},
        {.sequence = 2, .token_ids = std::span(ids).last(1)}};
    std::vector<float> embeddings = queries_[0].embedding;
    embeddings.insert(embeddings.end(), queries_[1].embedding.begin(),
                      queries_[1].embedding.end());
    predictor_->BeginStep(
        {.slices = slices, .embeddings = {embeddings, 2, kDim}});
  }

  // Gates may give rows of any sum.
  void Observe(int32_t layer) {
    std::vector<float> rows;
    for (const Record& query : queries_) {
      for (const float p : query.Row(layer)) rows.push_back(3 * p);
    }
    const std::vector<int32_t> experts = {0, 1, 2, 3};
    predictor_->Observe({.layer = layer,
                         .probabilities = {rows, 2, kExperts},
                         .experts = experts});
  }

  void ExpectScores(int32_t layer, int32_t distance,
                    const std::vector<MapScore>& expected) {
    std::vector<Fp16> scores(kExperts);
    predictor_->Predict(layer, distance, scores);
    for (size_t e = 0; e < scores.size(); ++e) {
      const MapScore score = MapScoreOf(ToFloat(scores[e]));
      EXPECT_NEAR(score.probability, expected[e].probability, 1e-3)
          << "layer " << layer << " expert " << e;
      EXPECT_EQ(score.selected, expected[e].selected)
          << "layer " << layer << " expert " << e;
    }
  }

  History history_;
  const std::vector<Record> records_;
  const std::vector<Record> queries_;
  const std::unique_ptr<Predictor> predictor_;
};

TEST_F(FmoePredictorTest, SemanticSearchServesTheFirstLayersOfEachToken) {
  Begin();

  for (int32_t layer = 0; layer < kDistance; ++layer) {
    std::vector<MapScore> expected(kExperts);
    for (const Record& query : queries_) {
      const auto score = [&](const Record& record) {
        return Cosine(record.embedding, query.embedding);
      };
      const Record& match = records_[ArgMax(records_, score)];
      expected = UnionOf(expected, SlowSelection(match, score(match), layer));
    }
    ExpectScores(layer, layer + 1, expected);
  }
}

TEST_F(FmoePredictorTest, TrajectorySearchServesTheLayerAtTheDistance) {
  Begin();
  for (int32_t layer = 0; layer + kDistance < kLayers; ++layer) {
    Observe(layer);

    std::vector<MapScore> expected(kExperts);
    for (const Record& query : queries_) {
      const auto score = [&](const Record& record) {
        return TrajectoryCosine(record, query, layer + 1);
      };
      const Record& match = records_[ArgMax(records_, score)];
      expected = UnionOf(expected,
                         SlowSelection(match, score(match), layer + kDistance));
    }
    ExpectScores(layer + kDistance, kDistance, expected);
  }
}

TEST_F(FmoePredictorTest, StoresAMapForEachTokenOfTheStep) {
  History history(history_.shape());
  const auto predictor = MakeFmoePredictor({.num_layers = kLayers,
                                            .num_experts = kExperts,
                                            .top_k = kTopK,
                                            .hidden = kDim,
                                            .max_step_tokens = 4},
                                           kDistance, history);
  const std::vector<int32_t> ids = {1, 2, 3};
  const std::vector<SequenceSlice> slices = {{.sequence = 1, .token_ids = ids}};
  const std::vector<float> embeddings(3 * kDim, 1.0f);
  const std::vector<float> rows(3 * kExperts, 1.0f);
  const std::vector<int32_t> experts = {0, 1, 0, 1, 0, 1};

  predictor->BeginStep({.slices = slices, .embeddings = {embeddings, 3, kDim}});
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    predictor->Observe({.layer = layer,
                        .probabilities = {rows, 3, kExperts},
                        .experts = experts});
  }
  predictor->EndStep();

  EXPECT_EQ(history.iterations().size(), 3);
}

}  // namespace
}  // namespace portolan
