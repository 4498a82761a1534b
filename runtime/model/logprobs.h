#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace portolan {

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

// Log-probabilities of the model's own distribution (before penalties,
// temperature and filters) at one position: that of `chosen` first, then the
// `num_top` likeliest, ties by the lower id. Equal logits give equal bits.
// Replaces the contents of `out`; allocates nothing once `out` has grown.
void ComputeLogprobs(std::span<const float> logits, int32_t chosen,
                     int32_t num_top, std::vector<TokenLogprob>& out);

}  // namespace portolan
