#include "experts/adaptive_trajectories.h"

#include <algorithm>

namespace portolan::adaptive {
namespace {

constexpr int64_t kStoreInterval = 4;  // steps

}  // namespace

Trajectories::Trajectories(const PredictorShape& shape, ExpertMapStore& store,
                           Histogram& scores)
    : shape_(shape),
      store_(store),
      scores_(scores),
      tokens_(kTokens, Trajectory(store)),
      first_embedding_(static_cast<size_t>(shape.hidden)),
      row_(static_cast<size_t>(shape.num_experts)) {}

void Trajectories::BeginStep(std::span<const float> first_embedding,
                             size_t num_tokens) {
  num_tokens_ = std::min(kTokens, num_tokens);
  for (Trajectory& trajectory : tokens_) {
    trajectory.search.Begin();
    trajectory.match.reset();
  }
  std::ranges::copy(first_embedding, first_embedding_.begin());
}

void Trajectories::Observe(const LayerObservation& observation) {
  Reward(observation);
  Extend(observation);
}

void Trajectories::Reward(const LayerObservation& observation) {
  const auto top_k = static_cast<size_t>(shape_.top_k);
  for (size_t i = 0; i < num_tokens_; ++i) {
    const auto& match = tokens_[i].match;
    if (!match) continue;
    store_.CopyRow(match->record, observation.layer, row_);
    // The share of its map that lies on what was chosen.
    float chosen = 0;
    for (const int32_t expert : observation.experts.subspan(i * top_k, top_k)) {
      chosen += row_[static_cast<size_t>(expert)];
    }
    store_.Reward(match->record, std::min(chosen, 1.0f));
  }
}

void Trajectories::Extend(const LayerObservation& observation) {
  const auto experts = static_cast<size_t>(shape_.num_experts);
  for (size_t i = 0; i < num_tokens_; ++i) {
    const std::span<const float> row =
        observation.probabilities.Row(static_cast<int64_t>(i));
    float sum = 0;
    for (const float p : row) sum += p;
    const float scale = sum > 0 ? 1 / sum : 0.0f;
    Trajectory& trajectory = tokens_[i];
    const auto kept =
        std::span(trajectory.map)
            .subspan(static_cast<size_t>(observation.layer) * experts, experts);
    for (size_t e = 0; e < experts; ++e) kept[e] = row[e] * scale;
    trajectory.search.Extend(observation.layer, kept);
    trajectory.match = trajectory.search.Best();
    if (trajectory.match) scores_.Add(trajectory.match->similarity);
  }
}

bool Trajectories::Find(int64_t token, int32_t layer,
                        std::span<float> probabilities) const {
  if (token >= static_cast<int64_t>(kTokens)) return false;
  const auto& match = tokens_[static_cast<size_t>(token)].match;
  if (!match) return false;
  store_.CopyRow(match->record, layer, probabilities);
  for (float& value : probabilities) value *= static_cast<float>(shape_.top_k);
  return true;
}

MatrixView<const float> Trajectories::FirstMap() const {
  return {tokens_.front().map, shape_.num_layers, shape_.num_experts};
}

void Trajectories::EndStep() {
  if (steps_++ % kStoreInterval != 0 || num_tokens_ == 0) return;
  if (const auto& match = tokens_.front().match) {
    store_.Reward(match->record, store_.ForetoldShare(match->record, FirstMap(),
                                                      shape_.top_k));
  }
  store_.Add(first_embedding_, FirstMap());
}

}  // namespace portolan::adaptive
