#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "experts/history.h"
#include "experts/prediction_score.h"
#include "experts/predictor_maps.h"
#include "experts/trajectory_search.h"

namespace portolan {
namespace {

// The activation matrix of a sequence: assignments of each expert so far.
struct Activation {
  std::vector<float> counts;  // [num_layers, num_experts]
  std::vector<float> embedding;
  int64_t tokens = 0;
};

class EamPredictor final : public Predictor {
 public:
  EamPredictor(const PredictorShape& shape, int32_t distance, History& history)
      : shape_(shape),
        experts_(static_cast<size_t>(shape.num_experts)),
        cells_(static_cast<size_t>(shape.num_layers) * experts_),
        distances_{1, 2, std::max(3, distance)},
        store_(history.sequences()),
        search_(store_),
        scores_(cells_, 0.0f),
        row_(experts_),
        tokens_(experts_),
        score_("nearest sequence", 1) {}

  std::span<const int32_t> distances() const override { return distances_; }

  void BeginStep(const StepTokens& tokens) override {
    slices_.clear();
    std::ranges::fill(scores_, 0.0f);
    int64_t row = 0;
    for (const SequenceSlice& slice : tokens.slices) {
      std::unique_ptr<Activation>& activation = sequences_[slice.sequence];
      if (activation == nullptr) {
        activation = std::make_unique<Activation>();
        activation->counts.resize(cells_);
        activation->embedding.resize(static_cast<size_t>(shape_.hidden));
      }
      AddEmbeddings(tokens, row, std::ssize(slice.token_ids), *activation);
      slices_.push_back({activation.get(), row, std::ssize(slice.token_ids)});
      row += std::ssize(slice.token_ids);
      Foretell(*activation);
    }
  }

  void Observe(const LayerObservation& observation) override {
    CountScore(observation);
    const auto top_k = static_cast<size_t>(shape_.top_k);
    for (const Slice& slice : slices_) {
      const size_t cell = static_cast<size_t>(observation.layer) * experts_;
      for (const int32_t expert : observation.experts.subspan(
               static_cast<size_t>(slice.first_row) * top_k,
               static_cast<size_t>(slice.num_rows) * top_k)) {
        slice.activation->counts[cell + static_cast<size_t>(expert)] += 1.0f;
      }
    }
  }

  void Predict(int32_t layer, int32_t /*distance*/,
               std::span<Fp16> scores) override {
    std::ranges::fill(scores, Fp16{});
    if (layer >= shape_.num_layers) return;
    std::ranges::transform(std::span(scores_).subspan(
                               static_cast<size_t>(layer) * experts_, experts_),
                           scores.begin(), ToFp16);
  }

  void EndStep() override {
    for (const Slice& slice : slices_)
      slice.activation->tokens += slice.num_rows;
    slices_.clear();
    std::ranges::fill(scores_, 0.0f);
  }

  void EndSequence(int64_t sequence) override {
    const auto found = sequences_.find(sequence);
    if (found == sequences_.end()) return;
    Activation& activation = *found->second;
    if (activation.tokens > 0) {
      for (float& count : activation.counts) {
        count /= static_cast<float>(activation.tokens);
      }
      store_.Add(activation.embedding,
                 {activation.counts, shape_.num_layers, shape_.num_experts});
    }
    sequences_.erase(found);
  }

  std::vector<PredictionMetrics> metrics() const override {
    return {score_.metrics()};
  }

  const Histogram* match_scores() const override { return &match_scores_; }

 private:
  struct Slice {
    Activation* activation = nullptr;
    int64_t first_row = 0;
    int64_t num_rows = 0;
  };

  void AddEmbeddings(const StepTokens& tokens, int64_t first, int64_t count,
                     Activation& activation) {
    for (int64_t row = first; row < first + count; ++row) {
      const std::span<const float> embedding = tokens.embeddings.Row(row);
      std::ranges::transform(embedding, activation.embedding,
                             activation.embedding.begin(), std::plus<>());
    }
  }

  // Adds the ratios of the stored sequence that is nearest to what the sequence
  // did so far; a new one has done nothing and gets none.
  void Foretell(const Activation& activation) {
    if (activation.tokens == 0) return;
    search_.Begin();
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      search_.Extend(
          layer, std::span(activation.counts)
                     .subspan(static_cast<size_t>(layer) * experts_, experts_));
    }
    const auto match = search_.Best();
    if (!match) return;
    match_scores_.Add(match->similarity);
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      store_.CopyRow(match->record, layer, row_);
      const size_t cell = static_cast<size_t>(layer) * experts_;
      for (size_t e = 0; e < experts_; ++e) scores_[cell + e] += row_[e];
    }
  }

  void CountScore(const LayerObservation& observation) {
    std::ranges::fill(tokens_, 0);
    for (const int32_t expert : observation.experts) {
      ++tokens_[static_cast<size_t>(expert)];
    }
    score_.Count(
        std::span(scores_).subspan(
            static_cast<size_t>(observation.layer) * experts_, experts_),
        tokens_, observation.probabilities.rows());
  }

  const PredictorShape shape_;
  const size_t experts_;
  const size_t cells_;
  const std::array<int32_t, 3> distances_;
  ExpertMapStore& store_;
  TrajectorySearch search_;
  absl::flat_hash_map<int64_t, std::unique_ptr<Activation>> sequences_;
  std::vector<Slice> slices_;
  std::vector<float> scores_;    // [num_layers, num_experts]
  std::vector<float> row_;       // [num_experts]
  std::vector<int32_t> tokens_;  // [num_experts]
  PredictionScore score_;
  Histogram match_scores_ = MatchScoreHistogram();
};

}  // namespace

std::unique_ptr<Predictor> MakeEamPredictor(const PredictorShape& shape,
                                            int32_t distance,
                                            History& history) {
  return std::make_unique<EamPredictor>(shape, distance, history);
}

}  // namespace portolan
