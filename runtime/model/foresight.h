#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "experts/predictor.h"
#include "runtime/model/forward_observer.h"

namespace portolan {

// Feeds a predictor with what the forward pass sees, and gives its scores to
// the exchange as hints: those for layers 0 .. d-1 (num_layers + l: layer l of
// the step after) with the step record, those for layer + distance with each
// layer's header.
//
// Thread-compatible.
class Foresight final : public ForwardObserver {
 public:
  Foresight(std::unique_ptr<Predictor> predictor, int32_t num_layers,
            int32_t num_experts);

  const Predictor& predictor() const { return *predictor_; }
  std::vector<int32_t> distances() const {
    return {predictor_->distances().begin(), predictor_->distances().end()};
  }
  // So many layers are hinted with the step record.
  int32_t step_layers() const { return predictor_->step_layers(num_layers_); }

  int look_ahead() const override { return predictor_->lookahead(); }
  void OnEmbedding(std::span<const StepToken> tokens,
                   MatrixView<const float> embeddings) override;
  std::span<const Fp16> step_hints() const override { return step_hints_; }
  std::span<const Fp16> OnGate(const GateOutput& gate) override;
  void OnStepEnd() override;
  void OnSequenceEnd(int64_t sequence) override;

 private:
  std::span<Fp16> Row(std::vector<Fp16>& rows, size_t row) const;

  const std::unique_ptr<Predictor> predictor_;
  const int32_t num_layers_;
  const size_t num_experts_;
  bool has_tokens_ = false;
  std::vector<int32_t> token_ids_;
  std::vector<SequenceSlice> slices_;
  std::vector<Fp16> step_hints_;   // [reach, experts]
  std::vector<Fp16> layer_hints_;  // [distances, experts]
};

// Cuts the tokens of a step into its sequences; `token_ids` backs the slices.
void SliceBySequence(std::span<const StepToken> tokens,
                     std::vector<int32_t>& token_ids,
                     std::vector<SequenceSlice>& slices);

}  // namespace portolan
