#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "experts/metrics.h"
#include "runtime/base/fp16.h"
#include "runtime/base/histogram.h"
#include "runtime/base/matrix_view.h"

namespace portolan {

// Consecutive tokens of one sequence in a step: prompt tokens or one decoded.
struct SequenceSlice {
  int64_t sequence = 0;  // unique while the sequence lives
  int32_t first_position = 0;
  std::span<const int32_t> token_ids = {};  // [num_tokens]
};

// The tokens of one rank in a step. Valid during the call only.
struct StepTokens {
  std::span<const SequenceSlice> slices = {};
  // Output of the embedding layer, [sum of num_tokens, hidden], by slice.
  MatrixView<const float> embeddings = {};
};

// What the gate of a layer said of the same tokens, in the same order. Valid
// during the call only.
struct LayerObservation {
  int32_t layer = 0;
  MatrixView<const float> probabilities =
      {};                                 // [num_tokens, num_experts], before
                                          // top-k; rows of any positive sum
  std::span<const int32_t> experts = {};  // [num_tokens, top_k], chosen
  // Probabilities that the gates of the next two MoE layers give to the hidden
  // state before this layer's experts; empty if the predictor does not ask
  // (lookahead()) or there is no such layer.
  MatrixView<const float> ahead1 = {};
  MatrixView<const float> ahead2 = {};
};

struct PredictorShape {
  int32_t num_layers = 0;
  int32_t num_experts = 0;
  int32_t top_k = 0;
  int32_t hidden = 0;
  int32_t max_step_tokens = 0;
};

// Foretells, from the tokens of one rank, which experts coming layers will
// need. Its scores travel to the owners of the experts as hints, whose
// CachePolicy acts on them (policy.h).
//
// Order of calls in a step: BeginStep, then Predict for layers 0 .. d-1 (they
// travel with the step record; d is the last of distances(), and layer
// num_layers + l means layer l of the step after this one), then for each layer
// Observe and Predict for layer + distance unless that is beyond the last
// layer, then EndStep. A rank without tokens calls nothing but Predict, which
// then yields zeros.
//
// Deterministic, no clock, thread or file. Thread-compatible.
class Predictor {
 public:
  virtual ~Predictor() = default;

  // Layers ahead that are foretold after each Observe(), rising, fixed per job;
  // at most 2 * num_layers.
  virtual std::span<const int32_t> distances() const = 0;

  // Whether Predict() has more than zeros for the layers of the step after this
  // one.
  virtual bool foretells_next_step() const { return false; }

  // Layers that travel with the step record, from 0 on.
  int32_t step_layers(int32_t num_layers) const {
    return std::min(distances().back(),
                    foretells_next_step() ? 2 * num_layers : num_layers);
  }

  // How many gates ahead Observe() wants evaluated: 0, 1 or 2.
  virtual int32_t lookahead() const { return 0; }

  virtual void BeginStep(const StepTokens& tokens) = 0;
  virtual void Observe(const LayerObservation& observation) = 0;

  // Scores for the experts of `layer` ([num_experts]): expected tokens of this
  // rank's step that choose the expert, or what the policy's merge wants.
  // `distance`: layers from the one observed last, or layer + 1 after
  // BeginStep().
  virtual void Predict(int32_t layer, int32_t distance,
                       std::span<Fp16> scores) = 0;

  // The step is complete: learn from it.
  virtual void EndStep() = 0;

  // The sequence will not come again.
  virtual void EndSequence(int64_t /*sequence*/) {}

  // Precision and recall so far, by source and distance.
  virtual std::vector<PredictionMetrics> metrics() const { return {}; }

  // Cosines of the best match of each search for an expert map, whether by
  // embedding or by trajectory; null if the predictor searches none.
  virtual const Histogram* match_scores() const { return nullptr; }
};

}  // namespace portolan
