#pragma once

#include <cstdint>
#include <span>

#include "runtime/base/matrix_view.h"

namespace portolan {

// How a gate's probabilities become expert choices.
struct GateRule {
  int32_t top_k = 1;
  // Divide the chosen probabilities by their sum (norm_topk_prob).
  bool normalize = true;
};

// Chooses top_k experts of every token: descending by probability, ties by the
// lower expert id, so that the choice does not depend on a sort's whims.
//
// probabilities: [num_tokens, num_experts], num_experts >= top_k.
// experts, weights: [num_tokens, top_k], written; the weights of a token are
// summed in top-k order when they are normalised. Pure.
void ChooseExperts(MatrixView<const float> probabilities, const GateRule& rule,
                   std::span<int32_t> experts, std::span<float> weights);

}  // namespace portolan
