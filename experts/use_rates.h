#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "experts/policy.h"

namespace portolan {

// How often a token chooses each expert, from what the tokens of past steps
// chose: a fast and a slow decaying mean per token, half and half. A prompt of
// many tokens weighs as many. Thread-compatible, no allocation.
class UseRates {
 public:
  explicit UseRates(const PolicyShape& shape);

  // `num_tokens` tokens of all ranks passed the layer and chose `needs`.
  void OnVisit(int32_t layer, std::span<const ExpertNeed> needs,
               int64_t num_tokens);
  // And these, of the same tokens and layer.
  void AddNeeds(int32_t layer, std::span<const ExpertNeed> needs,
                int64_t num_tokens);

  // By PolicyShape::Index(): probability that one more token chooses it.
  float rate(size_t index) const {
    return 0.5f * (recent_[index] + mean_[index]);
  }

 private:
  struct Memory;
  void Add(int32_t layer, std::span<const ExpertNeed> needs, int64_t num_tokens,
           const Memory& keep);

  size_t num_experts_;
  std::vector<float> recent_;
  std::vector<float> mean_;
};

}  // namespace portolan
