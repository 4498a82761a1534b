#include "runtime/model/gate.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace portolan {
namespace {

// Inserts `expert` into the descending list of the best `kept` experts so far.
// Equal probabilities keep their order, which is rising by id.
void Insert(std::span<const float> probabilities, int32_t expert,
            std::span<int32_t> best, size_t kept) {
  const float p = probabilities[static_cast<size_t>(expert)];
  size_t at = kept;
  while (at > 0 && probabilities[static_cast<size_t>(best[at - 1])] < p) --at;
  if (at == best.size()) return;
  const size_t last = std::min(kept, best.size() - 1);
  for (size_t i = last; i > at; --i) best[i] = best[i - 1];
  best[at] = expert;
}

}  // namespace

void ChooseExperts(MatrixView<const float> probabilities, const GateRule& rule,
                   std::span<int32_t> experts, std::span<float> weights) {
  const auto top_k = static_cast<size_t>(rule.top_k);
  const int64_t num_experts = probabilities.cols();
  PORTOLAN_CHECK(num_experts >= rule.top_k);
  for (int64_t token = 0; token < probabilities.rows(); ++token) {
    const std::span<const float> row = probabilities.Row(token);
    const size_t first = static_cast<size_t>(token) * top_k;
    const std::span<int32_t> best = experts.subspan(first, top_k);
    for (int32_t e = 0; e < num_experts; ++e) {
      Insert(row, e, best, std::min(static_cast<size_t>(e), top_k));
    }
    float sum = 0;
    for (size_t i = 0; i < top_k; ++i) {
      weights[first + i] = row[static_cast<size_t>(best[i])];
      sum += weights[first + i];
    }
    if (!rule.normalize) continue;
    for (size_t i = 0; i < top_k; ++i) weights[first + i] /= sum;
  }
}

}  // namespace portolan
