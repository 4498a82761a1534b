#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/base/fp16.h"
#include "runtime/base/matrix_view.h"

namespace portolan {

// One token of the step, in the order of the rows; the tokens of a sequence
// follow each other.
struct StepToken {
  int64_t sequence = 0;  // ForwardSequence::id
  int64_t position = 0;
  int32_t token = 0;
};

// What a gate said at one layer. Views are valid during the call.
struct GateOutput {
  int32_t layer = 0;                      // among the MoE layers
  MatrixView<const float> probabilities;  // [tokens, experts]
  std::span<const int32_t> experts;       // [tokens, top_k]
  std::span<const float> weights;         // [tokens, top_k]
  // Probabilities of the gates of the next two MoE layers applied to the
  // present hidden state; empty beyond the last layer or where not wanted.
  MatrixView<const float> look_ahead[2];
};

// Watches the forward pass: predictions, traces, tests. Calls come on the
// thread of the step loop, in this order, also for a step without tokens.
class ForwardObserver {
 public:
  virtual ~ForwardObserver() = default;

  // How many layers ahead GateOutput::look_ahead shall reach: 0, 1 or 2.
  virtual int look_ahead() const { return 0; }

  // embeddings: [tokens, hidden].
  virtual void OnEmbedding(std::span<const StepToken> /*tokens*/,
                           MatrixView<const float> /*embeddings*/) {}

  // What OnEmbedding() foretold for the first layers: scores as
  // TokenExchange::BeginStep() takes them, or none. Valid until OnGate().
  virtual std::span<const Fp16> step_hints() const { return {}; }

  // Returns the hints that travel with this layer's tokens, as
  // TokenExchange::Run() takes them, or none. Valid until the next call.
  virtual std::span<const Fp16> OnGate(const GateOutput& /*gate*/) {
    return {};
  }

  // The experts of the layer are computed and combined; as GateOutput::layer.
  virtual void OnLayerEnd(int32_t /*layer*/) {}

  // The step's tokens are sampled and delivered.
  virtual void OnStepEnd() {}

  // The sequence will not come again.
  virtual void OnSequenceEnd(int64_t /*sequence*/) {}
};

// Several observers as one. At most one of them gives hints.
class ObserverChain final : public ForwardObserver {
 public:
  // `observer` must outlive the chain.
  void Add(ForwardObserver& observer) { observers_.push_back(&observer); }
  bool empty() const { return observers_.empty(); }

  int look_ahead() const override;
  void OnEmbedding(std::span<const StepToken> tokens,
                   MatrixView<const float> embeddings) override;
  std::span<const Fp16> step_hints() const override;
  std::span<const Fp16> OnGate(const GateOutput& gate) override;
  void OnLayerEnd(int32_t layer) override;
  void OnStepEnd() override;
  void OnSequenceEnd(int64_t sequence) override;

 private:
  std::vector<ForwardObserver*> observers_;
};

}  // namespace portolan
