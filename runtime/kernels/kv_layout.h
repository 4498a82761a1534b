#pragma once

#include <cstdint>

#include "runtime/kernels/activation.h"
#include "runtime/kernels/packed_matrix.h"

namespace portolan {

// Positions of one KV page: one block of K of the product P * V, so attention
// walks whole pages at fixed absolute positions.
inline constexpr int64_t kPageTokens = 32;

// One page of one layer holds, for each KV head, K and then V of kPageTokens
// positions in the packed tiles of packed_matrix.h: K with positions as outputs
// and dimensions as inputs, V with dimensions as outputs and positions as
// inputs. Elements are bf16, or f32 in the same places.
//
// A page starts zeroed and 64-byte aligned. A page that is used again need not
// be cleared for attention's sake: what is masked gets the weight 0, so it only
// must be finite.
struct KvLayout {
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  ActivationDtype dtype = ActivationDtype::kBf16;

  constexpr int64_t KElements() const {
    return kPageTokens / kTileOutputs * NumInputBlocks(head_dim) *
           kTileElements;
  }
  constexpr int64_t VElements() const {
    return NumOutputBlocks(head_dim) * kTileElements;
  }
  // Of one KV head in a page.
  constexpr int64_t HeadElements() const { return KElements() + VElements(); }
  constexpr int64_t PageBytes() const {
    return num_kv_heads * HeadElements() * BytesOf(dtype);
  }

  // Element of (position in the page, dimension) within the head's K or V.
  constexpr int64_t KIndex(int64_t token, int64_t dim) const {
    return (token / kTileOutputs * NumInputBlocks(head_dim) +
            dim / kTileInputs) *
               kTileElements +
           PairIndex(token % kTileOutputs, dim % kTileInputs);
  }
  constexpr int64_t VIndex(int64_t token, int64_t dim) const {
    return dim / kTileOutputs * kTileElements +
           PairIndex(dim % kTileOutputs, token);
  }

 private:
  static constexpr int64_t PairIndex(int64_t output, int64_t input) {
    return input / 2 * 2 * kTileOutputs + output * 2 + input % 2;
  }
};

}  // namespace portolan
