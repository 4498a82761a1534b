#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "experts/hints.h"
#include "experts/history.h"
#include "experts/prediction_score.h"
#include "experts/predictor_maps.h"
#include "experts/trajectory_search.h"

namespace portolan {
namespace {

// The iteration of one token.
struct TokenTrack {
  TokenTrack(const ExpertMapStore& store, size_t cells, size_t hidden)
      : search(store), map(cells), embedding(hidden) {}

  TrajectorySearch search;
  std::vector<float> map;  // [num_layers, num_experts], rows sum to 1
  std::vector<float> embedding;
};

class FmoePredictor final : public Predictor {
 public:
  FmoePredictor(const PredictorShape& shape, int32_t distance, History& history)
      : shape_(shape),
        experts_(static_cast<size_t>(shape.num_experts)),
        distance_{distance},
        store_(history.iterations()),
        scores_(static_cast<size_t>(shape.num_layers) * experts_),
        row_(experts_),
        order_(experts_),
        tokens_(experts_),
        semantic_("semantic map", distance),
        trajectory_("trajectory map", distance) {}

  std::span<const int32_t> distances() const override { return distance_; }

  void BeginStep(const StepTokens& tokens) override {
    num_tokens_ = static_cast<size_t>(tokens.embeddings.rows());
    std::ranges::fill(scores_, MapScore{});
    while (tracks_.size() < num_tokens_) {
      tracks_.emplace_back(store_, scores_.size(),
                           static_cast<size_t>(shape_.hidden));
    }
    for (size_t i = 0; i < num_tokens_; ++i) {
      TokenTrack& track = tracks_[i];
      track.search.Begin();
      std::ranges::copy(tokens.embeddings.Row(static_cast<int64_t>(i)),
                        track.embedding.begin());
      const auto match = store_.MatchEmbedding(track.embedding);
      if (!match) continue;
      match_scores_.Add(match->similarity);
      for (int32_t layer = 0; layer < std::min(distance_[0], shape_.num_layers);
           ++layer) {
        Select(*match, layer);
      }
    }
  }

  void Observe(const LayerObservation& observation) override {
    CountScore(observation);
    const int32_t target = observation.layer + distance_[0];
    for (size_t i = 0; i < num_tokens_; ++i) {
      TokenTrack& track = tracks_[i];
      const auto row = std::span(track.map).subspan(
          static_cast<size_t>(observation.layer) * experts_, experts_);
      Normalise(observation.probabilities.Row(static_cast<int64_t>(i)), row);
      track.search.Extend(observation.layer, row);
      if (target >= shape_.num_layers) continue;
      if (const auto match = track.search.Best()) {
        match_scores_.Add(match->similarity);
        Select(*match, target);
      }
    }
  }

  void Predict(int32_t layer, int32_t /*distance*/,
               std::span<Fp16> scores) override {
    std::ranges::fill(scores, Fp16{});
    if (layer >= shape_.num_layers) return;
    std::ranges::transform(
        Scores(layer), scores.begin(),
        [](const MapScore& score) { return ToFp16(HintOf(score)); });
  }

  void EndStep() override {
    // Of every token's search, before the places of records change.
    for (size_t i = 0; i < num_tokens_; ++i) {
      if (const auto match = tracks_[i].search.Best()) {
        store_.Reward(match->record,
                      store_.ForetoldShare(match->record,
                                           {tracks_[i].map, shape_.num_layers,
                                            shape_.num_experts},
                                           shape_.top_k));
      }
    }
    for (size_t i = 0; i < num_tokens_; ++i) {
      store_.Add(tracks_[i].embedding,
                 {tracks_[i].map, shape_.num_layers, shape_.num_experts});
    }
    num_tokens_ = 0;
    std::ranges::fill(scores_, MapScore{});
  }

  std::vector<PredictionMetrics> metrics() const override {
    return {semantic_.metrics(), trajectory_.metrics()};
  }

  const Histogram* match_scores() const override { return &match_scores_; }

 private:
  std::span<MapScore> Scores(int32_t layer) {
    return std::span(scores_).subspan(static_cast<size_t>(layer) * experts_,
                                      experts_);
  }

  static void Normalise(std::span<const float> from, std::span<float> to) {
    const float sum = std::accumulate(from.begin(), from.end(), 0.0f);
    const float scale = sum > 0 ? 1.0f / sum : 0.0f;
    std::ranges::transform(from, to.begin(),
                           [scale](float p) { return p * scale; });
  }

  // Adds what a match says of a layer: the probabilities of its row, by which
  // residents are given up, and the experts it selects to be read.
  void Select(const ExpertMapStore::Match& match, int32_t layer) {
    store_.CopyRow(match.record, layer, row_);
    std::iota(order_.begin(), order_.end(), 0);
    std::ranges::sort(order_, [this](int32_t a, int32_t b) {
      const float left = row_[static_cast<size_t>(a)];
      const float right = row_[static_cast<size_t>(b)];
      return left > right || (left == right && a < b);
    });
    const float delta = std::clamp(1.0f - match.similarity, 0.0f, 1.0f);
    const std::span<MapScore> scores = Scores(layer);
    float sum = 0;
    int32_t selected = 0;
    for (const int32_t expert : order_) {
      const float p = row_[static_cast<size_t>(expert)];
      MapScore& score = scores[static_cast<size_t>(expert)];
      score.probability = std::max(score.probability, p);
      if (selected >= shape_.top_k && sum >= delta) continue;
      score.selected = true;
      sum += p;
      ++selected;
    }
  }

  // Of the published selection: what was selected counts as foretold.
  void CountScore(const LayerObservation& observation) {
    std::ranges::fill(tokens_, 0);
    for (const int32_t expert : observation.experts) {
      ++tokens_[static_cast<size_t>(expert)];
    }
    std::ranges::transform(
        Scores(observation.layer), row_.begin(),
        [](const MapScore& score) { return score.selected ? 1.0f : 0.0f; });
    PredictionScore& score =
        observation.layer < distance_[0] ? semantic_ : trajectory_;
    score.Count(row_, tokens_, 1);
  }

  const PredictorShape shape_;
  const size_t experts_;
  const std::array<int32_t, 1> distance_;
  ExpertMapStore& store_;
  std::vector<TokenTrack> tracks_;  // the first num_tokens_ are in use
  size_t num_tokens_ = 0;
  std::vector<MapScore> scores_;  // [num_layers, num_experts]
  // Scratch, [num_experts].
  std::vector<float> row_;
  std::vector<int32_t> order_;
  std::vector<int32_t> tokens_;
  PredictionScore semantic_;
  PredictionScore trajectory_;
  Histogram match_scores_ = MatchScoreHistogram();
};

}  // namespace

std::unique_ptr<Predictor> MakeFmoePredictor(const PredictorShape& shape,
                                             int32_t distance,
                                             History& history) {
  return std::make_unique<FmoePredictor>(shape, distance, history);
}

}  // namespace portolan
