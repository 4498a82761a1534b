#pragma once

#include <cstdint>

namespace portolan {

// The experts of a layer that a rank owns without a placement, in blocks as
// equal as they can be: those from FirstOwnedExpert(rank) up to that of the
// next rank. It is the first e with e * num_ranks / num_experts >= rank.
constexpr int32_t FirstOwnedExpert(int32_t rank, int32_t num_ranks,
                                   int32_t num_experts) {
  return static_cast<int32_t>(
      (static_cast<int64_t>(rank) * num_experts + num_ranks - 1) / num_ranks);
}

}  // namespace portolan
