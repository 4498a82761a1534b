#include "runtime/model/foresight.h"

#include <algorithm>
#include <utility>

namespace portolan {

void SliceBySequence(std::span<const StepToken> tokens,
                     std::vector<int32_t>& token_ids,
                     std::vector<SequenceSlice>& slices) {
  token_ids.clear();
  slices.clear();
  for (const StepToken& token : tokens) token_ids.push_back(token.token);
  for (size_t first = 0; first < tokens.size();) {
    size_t end = first + 1;
    while (end < tokens.size() &&
           tokens[end].sequence == tokens[first].sequence) {
      ++end;
    }
    slices.push_back(
        {.sequence = tokens[first].sequence,
         .first_position = static_cast<int32_t>(tokens[first].position),
         .token_ids =
             std::span<const int32_t>(token_ids).subspan(first, end - first)});
    first = end;
  }
}

Foresight::Foresight(std::unique_ptr<Predictor> predictor, int32_t num_layers,
                     int32_t num_experts)
    : predictor_(std::move(predictor)),
      num_layers_(num_layers),
      num_experts_(static_cast<size_t>(num_experts)),
      step_hints_(static_cast<size_t>(step_layers()) * num_experts_),
      layer_hints_(predictor_->distances().size() * num_experts_) {}

std::span<Fp16> Foresight::Row(std::vector<Fp16>& rows, size_t row) const {
  return std::span(rows).subspan(row * num_experts_, num_experts_);
}

void Foresight::OnEmbedding(std::span<const StepToken> tokens,
                            MatrixView<const float> embeddings) {
  has_tokens_ = !tokens.empty();
  if (has_tokens_) {
    SliceBySequence(tokens, token_ids_, slices_);
    predictor_->BeginStep({.slices = slices_, .embeddings = embeddings});
  }
  for (int32_t layer = 0; layer < step_layers(); ++layer) {
    predictor_->Predict(layer, layer + 1,
                        Row(step_hints_, static_cast<size_t>(layer)));
  }
}

std::span<const Fp16> Foresight::OnGate(const GateOutput& gate) {
  if (has_tokens_) {
    predictor_->Observe({.layer = gate.layer,
                         .probabilities = gate.probabilities,
                         .experts = gate.experts,
                         .ahead1 = gate.look_ahead[0],
                         .ahead2 = gate.look_ahead[1]});
  }
  const std::span<const int32_t> distances = predictor_->distances();
  for (size_t i = 0; i < distances.size(); ++i) {
    const int32_t target = gate.layer + distances[i];
    if (target >= num_layers_) break;  // rising
    predictor_->Predict(target, distances[i], Row(layer_hints_, i));
  }
  return layer_hints_;
}

void Foresight::OnStepEnd() {
  if (has_tokens_) predictor_->EndStep();
}

void Foresight::OnSequenceEnd(int64_t sequence) {
  predictor_->EndSequence(sequence);
}

}  // namespace portolan
