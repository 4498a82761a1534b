#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "experts/mixer.h"
#include "experts/predictor.h"

namespace portolan {

class History;

// What is known when a layer is foretold; each has mixers of its own.
enum class Foresight : uint8_t {
  kTokens,      // the step's tokens: before its first layer
  kNextLayer,   // and the gate look-ahead from one layer before
  kLayerAfter,  // and that from two layers before
  kNextStep     // the token before it, a step earlier
};
inline constexpr size_t kNumForesights = 4;

// Untrained mixers of the adaptive predictor, [kNumForesights, num_layers].
std::vector<Mixer> InitialMixers(int32_t num_layers);

// Foretells with an online mixture of sources: per token, the probability that
// it goes to each expert, from
//   - the token table (what the same token id did before),
//   - the sequence's own recent and mean use of each expert,
//   - semantic search: the maps of earlier sequences of similar context,
//   - trajectory search: the map whose first layers went alike,
//   - gate look-ahead at +1 and +2,
//   - popularity over all sequences,
// mixed in the logistic domain with weights learned by log-loss per layer and
// foresight, so that a source counts for what it has proven. Scores add up over
// tokens to what their union needs (HintOf()).
//
// After BeginStep() every layer of the step is foretold at once, and every
// layer of the step after it (d = twice the layers); then again at distances 2
// and 1. Learns into `history`, which must outlive it. Source: algorithms.md
// section 3.
std::unique_ptr<Predictor> MakeAdaptivePredictor(const PredictorShape& shape,
                                                 History& history);

}  // namespace portolan
