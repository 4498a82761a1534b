#include "experts/predictor_adaptive.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "experts/adaptive_inputs.h"
#include "experts/adaptive_lessons.h"
#include "experts/adaptive_sources.h"
#include "experts/adaptive_trajectories.h"
#include "experts/hints.h"
#include "experts/history.h"

namespace portolan {
namespace {

using adaptive::Inputs;
using adaptive::Lessons;
using adaptive::SequenceUse;
using adaptive::SourceScores;
using adaptive::Trajectories;

constexpr size_t kNeighbours = 8;  // of a semantic search
constexpr float kNeighbourSharpness = 20;
constexpr int64_t kSearchInterval = 32;  // tokens between semantic searches
// Steps between measured ones: a prime, for prompts come in rhythms of 8 and 16
// where batches of equal length run.
constexpr int64_t kScoreInterval = 13;

struct Slice {
  SequenceUse* state = nullptr;
  int64_t sequence = 0;
  int64_t first_row = 0;
  int64_t num_rows = 0;
};

class AdaptivePredictor final : public Predictor {
 public:
  AdaptivePredictor(const PredictorShape& shape, History& history);

  std::span<const int32_t> distances() const override { return distances_; }
  int32_t lookahead() const override { return 2; }
  bool foretells_next_step() const override { return true; }
  void BeginStep(const StepTokens& tokens) override;
  void Observe(const LayerObservation& observation) override;
  void Predict(int32_t layer, int32_t distance,
               std::span<Fp16> scores) override;
  void EndStep() override;
  void EndSequence(int64_t sequence) override;
  std::vector<PredictionMetrics> metrics() const override;
  const Histogram* match_scores() const override { return &match_scores_; }

 private:
  size_t Cell(int32_t layer) const {
    return static_cast<size_t>(layer) * experts_;
  }

  void AddSlices(const StepTokens& tokens);
  SequenceUse& StateOf(int64_t sequence);
  void SearchSemantic(SequenceUse& state);
  void RewardNeighbours(const SequenceUse& state);
  // Foretells `layer` for all tokens; `ahead`: the gate's look-ahead, or empty.
  void Foretell(Foresight foresight, int32_t layer,
                MatrixView<const float> ahead);
  // Foretells `layer` for the token after the last one of each sequence.
  void ForetellNextStep(int32_t layer);
  bool measuring() const { return steps_ % kScoreInterval == 0; }
  bool measuring_next() const { return (steps_ + 1) % kScoreInterval == 0; }
  void LearnToken(SequenceUse& state, int64_t row);

  const PredictorShape shape_;
  const size_t layers_;
  const size_t experts_;
  const std::array<int32_t, 3> distances_;
  History& history_;
  absl::flat_hash_map<int64_t, std::unique_ptr<SequenceUse>> sequences_;

  // The step in work.
  std::vector<Slice> slices_;
  std::vector<int32_t> token_ids_;  // [rows]
  std::vector<int32_t> choices_;    // [rows, num_layers, top_k]
  std::vector<float> expected_;     // [2 * num_layers, num_experts]
  Histogram match_scores_ = MatchScoreHistogram();
  Trajectories trajectories_;
  Lessons lessons_;
  int64_t steps_ = 0;
  SourceScores scores_;

  // Scratch.
  Inputs inputs_;
  std::vector<float> probabilities_;  // [num_experts]
  std::vector<float> used_;           // [num_experts]
  std::vector<float> map_;            // [num_layers, num_experts]
  std::vector<ExpertMapStore::Match> matches_;
};

AdaptivePredictor::AdaptivePredictor(const PredictorShape& shape,
                                     History& history)
    : shape_(shape),
      layers_(static_cast<size_t>(shape.num_layers)),
      experts_(static_cast<size_t>(shape.num_experts)),
      distances_{1, 2, std::max(3, 2 * shape.num_layers)},
      history_(history),
      expected_(2 * layers_ * experts_),
      trajectories_(shape, history.iterations(), match_scores_),
      lessons_(shape, history.mixers()),
      scores_(shape.num_layers, shape.num_experts, shape.top_k),
      inputs_(shape.num_experts),
      probabilities_(experts_),
      used_(experts_),
      map_(layers_ * experts_) {}

void AdaptivePredictor::BeginStep(const StepTokens& tokens) {
  AddSlices(tokens);
  lessons_.BeginStep(tokens, steps_);
  trajectories_.BeginStep(tokens.embeddings.Row(0), token_ids_.size());
  if (measuring()) scores_.BeginStep();
  if (measuring_next()) scores_.BeginNextStep();
  choices_.resize(token_ids_.size() * layers_ *
                  static_cast<size_t>(shape_.top_k));
  for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
    Foretell(Foresight::kTokens, layer, {});
    ForetellNextStep(layer);
  }
}

void AdaptivePredictor::AddSlices(const StepTokens& tokens) {
  slices_.clear();
  token_ids_.clear();
  for (const SequenceSlice& slice : tokens.slices) {
    SequenceUse& state = StateOf(slice.sequence);
    slices_.push_back({.state = &state,
                       .sequence = slice.sequence,
                       .first_row = std::ssize(token_ids_),
                       .num_rows = std::ssize(slice.token_ids)});
    for (const int32_t id : slice.token_ids) {
      state.context.Append(tokens.embeddings.Row(std::ssize(token_ids_)));
      token_ids_.push_back(id);
    }
    if (state.tokens + std::ssize(slice.token_ids) >= state.next_search) {
      SearchSemantic(state);
      state.next_search =
          state.tokens + std::ssize(slice.token_ids) + kSearchInterval;
    }
  }
}

SequenceUse& AdaptivePredictor::StateOf(int64_t sequence) {
  std::unique_ptr<SequenceUse>& state = sequences_[sequence];
  if (state == nullptr) {
    state = std::make_unique<SequenceUse>(history_.popularity(), shape_.hidden);
  }
  return *state;
}

void AdaptivePredictor::SearchSemantic(SequenceUse& state) {
  history_.sequences().NearestEmbeddings(state.context.vector(), kNeighbours,
                                         matches_);
  if (matches_.empty()) return;
  match_scores_.Add(matches_.front().similarity);
  std::ranges::fill(state.semantic, 0.0f);
  float sum = 0;
  for (const ExpertMapStore::Match& match : matches_) {
    sum += std::exp(kNeighbourSharpness *
                    (match.similarity - matches_.front().similarity));
  }
  for (const ExpertMapStore::Match& match : matches_) {
    const float weight =
        std::exp(kNeighbourSharpness *
                 (match.similarity - matches_.front().similarity)) /
        sum;
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      history_.sequences().CopyRow(match.record, layer, used_);
      for (size_t e = 0; e < experts_; ++e) {
        state.semantic[Cell(layer) + e] += weight * used_[e];
      }
    }
  }
  if (state.tokens == 0) state.BeginAsForetold();
}

void AdaptivePredictor::Foretell(Foresight foresight, int32_t layer,
                                 MatrixView<const float> ahead) {
  const auto expected = std::span(expected_).subspan(Cell(layer), experts_);
  std::ranges::fill(expected, 0.0f);
  const Mixer& mixer = lessons_.MixerOf(foresight, layer);
  for (const Slice& slice : slices_) {
    inputs_.FillSequence(history_.popularity(), *slice.state, layer);
    for (int64_t i = 0; i < slice.num_rows; ++i) {
      const int64_t row = slice.first_row + i;
      inputs_.FillToken(history_.tokens(), token_ids_[static_cast<size_t>(row)],
                        *slice.state, layer);
      bool knows_trajectory = false;
      if (ahead.rows() > 0) {
        inputs_.FillAhead(ahead.Row(row));
        knows_trajectory = inputs_.FillTrajectory(trajectories_, row, layer);
      }
      mixer.Mix(inputs_.rows(), probabilities_);
      for (size_t e = 0; e < experts_; ++e)
        expected[e] += HintOf(probabilities_[e]);
      if (measuring()) {
        scores_.Add(foresight, layer, inputs_.rows(), knows_trajectory,
                    probabilities_);
      }
      lessons_.Keep(foresight, layer, row, inputs_.rows(), probabilities_);
    }
  }
}

void AdaptivePredictor::ForetellNextStep(int32_t layer) {
  const auto expected =
      std::span(expected_).subspan(Cell(shape_.num_layers + layer), experts_);
  std::ranges::fill(expected, 0.0f);
  const Mixer& mixer = lessons_.MixerOf(Foresight::kNextStep, layer);
  for (const Slice& slice : slices_) {
    inputs_.FillSequence(history_.popularity(), *slice.state, layer);
    const int64_t last = slice.first_row + slice.num_rows - 1;
    inputs_.FillToken(history_.followers(),
                      token_ids_[static_cast<size_t>(last)], *slice.state,
                      layer);
    mixer.Mix(inputs_.rows(), probabilities_);
    for (size_t e = 0; e < experts_; ++e)
      expected[e] += HintOf(probabilities_[e]);
    if (measuring_next()) {
      scores_.Add(Foresight::kNextStep, layer, inputs_.rows(),
                  /*knows_trajectory=*/false, probabilities_);
    }
    lessons_.KeepNextStep(layer, slice.sequence, inputs_.rows(),
                          probabilities_);
  }
}

void AdaptivePredictor::Observe(const LayerObservation& observation) {
  const int32_t layer = observation.layer;
  const auto top_k = static_cast<size_t>(shape_.top_k);
  for (size_t row = 0; row < token_ids_.size(); ++row) {
    std::copy_n(
        observation.experts.begin() + static_cast<std::ptrdiff_t>(row * top_k),
        top_k,
        choices_.begin() +
            static_cast<std::ptrdiff_t>(
                (row * layers_ + static_cast<size_t>(layer)) * top_k));
  }
  if (measuring()) scores_.Count(layer, observation.experts);
  lessons_.Learn(observation);
  trajectories_.Observe(observation);
  if (observation.ahead2.rows() > 0) {
    Foretell(Foresight::kLayerAfter, layer + 2, observation.ahead2);
  }
  if (observation.ahead1.rows() > 0) {
    Foretell(Foresight::kNextLayer, layer + 1, observation.ahead1);
  }
}

void AdaptivePredictor::Predict(int32_t layer, int32_t /*distance*/,
                                std::span<Fp16> scores) {
  if (slices_.empty()) {
    std::ranges::fill(scores, Fp16{});
    return;
  }
  const auto expected =
      std::span<const float>(expected_).subspan(Cell(layer), experts_);
  std::ranges::transform(expected, scores.begin(), ToFp16);
}

void AdaptivePredictor::EndStep() {
  trajectories_.EndStep();
  for (const Slice& slice : slices_) {
    for (int64_t i = 0; i < slice.num_rows; ++i) {
      LearnToken(*slice.state, slice.first_row + i);
    }
  }
  slices_.clear();
  token_ids_.clear();
  ++steps_;
}

void AdaptivePredictor::LearnToken(SequenceUse& state, int64_t row) {
  const auto top_k = static_cast<size_t>(shape_.top_k);
  const std::span<const int32_t> choices =
      std::span<const int32_t>(choices_).subspan(
          static_cast<size_t>(row) * layers_ * top_k, layers_ * top_k);
  history_.tokens().Learn(token_ids_[static_cast<size_t>(row)], choices);
  history_.followers().Learn(state.last_token, choices);
  state.last_token = token_ids_[static_cast<size_t>(row)];
  state.Learn(choices, top_k, experts_);
  const std::span<float> popularity = history_.popularity();
  for (float& share : popularity) share *= 1 - History::kPopularityRate;
  for (size_t i = 0; i < choices.size(); ++i) {
    popularity[i / top_k * experts_ + static_cast<size_t>(choices[i])] +=
        History::kPopularityRate;
  }
}

// The maps that the sequence would find at its end: those that it found on its
// way may have given their places to others.
void AdaptivePredictor::RewardNeighbours(const SequenceUse& state) {
  ExpertMapStore& store = history_.sequences();
  store.NearestEmbeddings(state.context.vector(), kNeighbours, matches_);
  for (const ExpertMapStore::Match& match : matches_) {
    store.Reward(match.record, store.ForetoldShare(match.record,
                                                   {map_, shape_.num_layers,
                                                    shape_.num_experts},
                                                   shape_.top_k));
  }
}

void AdaptivePredictor::EndSequence(int64_t sequence) {
  const auto found = sequences_.find(sequence);
  if (found == sequences_.end()) return;
  const SequenceUse& state = *found->second;
  if (state.tokens > 0) {
    const float scale = 1.0f / static_cast<float>(state.tokens);
    std::ranges::transform(state.used, map_.begin(),
                           [scale](float used) { return used * scale; });
    RewardNeighbours(state);
    history_.sequences().Add(state.context.vector(),
                             {map_, shape_.num_layers, shape_.num_experts});
  }
  sequences_.erase(found);
}

std::vector<PredictionMetrics> AdaptivePredictor::metrics() const {
  return scores_.metrics();
}

}  // namespace

std::vector<Mixer> InitialMixers(int32_t num_layers) {
  std::vector<Mixer> mixers(kNumForesights * static_cast<size_t>(num_layers),
                            Mixer(adaptive::kNumInputs));
  for (size_t i = 0; i < mixers.size(); ++i) {
    const std::span<float> weights = mixers[i].weights();
    weights[adaptive::kRecent] = 0.15f;
    weights[adaptive::kMean] = 0.15f;
    weights[adaptive::kSemantic] = 0.2f;
    weights[adaptive::kToken] = 0.5f;
    weights[adaptive::kAhead] =
        i >= static_cast<size_t>(num_layers) ? 0.5f : 0.0f;
  }
  return mixers;
}

std::unique_ptr<Predictor> MakeAdaptivePredictor(const PredictorShape& shape,
                                                 History& history) {
  return std::make_unique<AdaptivePredictor>(shape, history);
}

}  // namespace portolan
