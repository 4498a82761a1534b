#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "experts/expert_map_store.h"
#include "experts/predictor.h"
#include "experts/trajectory_search.h"

namespace portolan::adaptive {

// The search for past iterations that go as the first tokens of a step do,
// layer by layer; every few steps one is stored. A search costs records *
// experts a layer and token, so it is made for no more than kTokens.
// Thread-compatible; `store` and `scores` must outlive it.
class Trajectories {
 public:
  static constexpr size_t kTokens = 4;

  // `scores` gets the cosines of the best matches.
  Trajectories(const PredictorShape& shape, ExpertMapStore& store,
               Histogram& scores);

  // first_embedding: of the step's first token, [hidden].
  void BeginStep(std::span<const float> first_embedding, size_t num_tokens);
  // Says to the matched maps how well they foretold the layer, then goes on
  // with what its gates said.
  void Observe(const LayerObservation& observation);
  // What the map matched by a token says of a layer, probabilities that sum to
  // top_k; false if there is none.
  bool Find(int64_t token, int32_t layer, std::span<float> probabilities) const;
  void EndStep();

 private:
  struct Trajectory {
    explicit Trajectory(const ExpertMapStore& store)
        : search(store),
          map(static_cast<size_t>(store.shape().num_layers) *
              static_cast<size_t>(store.shape().num_experts)) {}

    TrajectorySearch search;
    std::optional<ExpertMapStore::Match> match = std::nullopt;
    std::vector<float> map;  // [num_layers, num_experts], rows sum to 1
  };

  void Reward(const LayerObservation& observation);
  void Extend(const LayerObservation& observation);
  MatrixView<const float> FirstMap() const;

  const PredictorShape shape_;
  ExpertMapStore& store_;
  Histogram& scores_;
  std::vector<Trajectory> tokens_;  // of the first num_tokens_
  size_t num_tokens_ = 0;
  int64_t steps_ = 0;
  std::vector<float> first_embedding_;
  std::vector<float> row_;  // scratch, [num_experts]
};

}  // namespace portolan::adaptive
