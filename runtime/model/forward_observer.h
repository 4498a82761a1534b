#pragma once

#include <cstdint>
#include <span>

#include "runtime/base/fp16.h"
#include "runtime/base/matrix_view.h"

namespace portolan {

// One token of the step, in the order of the rows.
struct StepToken {
  int64_t sequence = 0;  // ForwardSequence::id
  int64_t position = 0;
  int32_t token = 0;
};

// What a gate said at one layer. Views are valid during the call.
struct GateOutput {
  int32_t layer = 0;
  MatrixView<const float> probabilities;  // [tokens, experts]
  std::span<const int32_t> experts;       // [tokens, top_k]
  std::span<const float> weights;         // [tokens, top_k]
  // Probabilities of the gates of layers layer + 1 and layer + 2 applied to the
  // present hidden state; empty beyond the last layer or where not wanted.
  MatrixView<const float> look_ahead[2];
};

// Watches the forward pass, for prediction, traces and tests. Calls come on the
// thread of Step(), in the order of the layers, also for a step without tokens.
class ForwardObserver {
 public:
  virtual ~ForwardObserver() = default;

  // embeddings: [tokens, hidden].
  virtual void OnEmbedding(std::span<const StepToken> tokens,
                           MatrixView<const float> embeddings) = 0;

  // What OnEmbedding() foretold for the first layers: f16 scores as
  // TokenExchange::BeginStep() takes them, or none. Valid until OnGate().
  virtual std::span<const Fp16> step_hints() const = 0;

  // How many layers ahead GateOutput::look_ahead shall reach: 0, 1 or 2.
  virtual int look_ahead() const = 0;

  // Returns the hints that travel with this layer's tokens: f16 scores as
  // TokenExchange takes them, or none. Valid until the next call.
  virtual std::span<const Fp16> OnGate(const GateOutput& gate) = 0;
};

}  // namespace portolan
