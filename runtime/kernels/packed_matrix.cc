#include "runtime/kernels/packed_matrix.h"

#include <algorithm>
#include <cstring>

namespace portolan {
namespace {

// Four pairs of inputs. The base instruction set has vectors of this size, and
// moving words in them is limited by memory: no path needs a packing of its
// own.
typedef uint32_t Pairs __attribute__((vector_size(16)));
constexpr int64_t kPairs = 4;

Pairs LoadPairs(const Bf16* from) {
  Pairs pairs;
  std::memcpy(&pairs, from, sizeof(pairs));
  return pairs;
}

// Four pairs of four outputs: rows of `src`, columns of `dst`.
void TransposePairs(const Bf16* src, int64_t stride, Bf16* dst) {
  const Pairs a = LoadPairs(src);
  const Pairs b = LoadPairs(src + stride);
  const Pairs c = LoadPairs(src + 2 * stride);
  const Pairs d = LoadPairs(src + 3 * stride);
  const Pairs ab_lower = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Pairs ab_upper = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Pairs cd_lower = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Pairs cd_upper = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Pairs columns[kPairs] = {
      __builtin_shufflevector(ab_lower, cd_lower, 0, 1, 4, 5),
      __builtin_shufflevector(ab_lower, cd_lower, 2, 3, 6, 7),
      __builtin_shufflevector(ab_upper, cd_upper, 0, 1, 4, 5),
      __builtin_shufflevector(ab_upper, cd_upper, 2, 3, 6, 7)};
  for (int64_t i = 0; i < kPairs; ++i) {
    std::memcpy(static_cast<void*>(dst + i * 2 * kTileOutputs), &columns[i],
                sizeof(columns[i]));
  }
}

// One tile that `src` fills.
void PackWholeTile(const Bf16* src, int64_t stride, Bf16* dst) {
  for (int64_t k = 0; k < kTileInputs; k += 2 * kPairs) {
    for (int64_t row = 0; row < kTileOutputs; row += 4) {
      TransposePairs(src + row * stride + k, stride,
                     dst + k * kTileOutputs + row * 2);
    }
  }
}

// One tile: `rows` x `cols` elements of `src`, zeros beyond.
void PackTile(const Bf16* src, int64_t stride, int64_t rows, int64_t cols,
              Bf16* dst) {
  if (rows == kTileOutputs && cols == kTileInputs) {
    PackWholeTile(src, stride, dst);
    return;
  }
  std::fill_n(dst, kTileElements, Bf16{});
  for (int64_t row = 0; row < rows; ++row) {
    const Bf16* from = src + row * stride;
    Bf16* to = dst + row * 2;
    int64_t k = 0;
    for (; k + 1 < cols; k += 2) {
      std::memcpy(to + k / 2 * 32, from + k, 2 * sizeof(Bf16));
    }
    if (k < cols) to[k / 2 * 32] = from[k];
  }
}

}  // namespace

void PackBlock(const Bf16* src, int64_t stride, int64_t n, int64_t k,
               Bf16* dst) {
  for (int64_t kb = 0; kb < NumInputBlocks(k); ++kb) {
    const int64_t first = kb * kTileInputs;
    PackTile(src + first, stride, n, std::min(kTileInputs, k - first),
             dst + kb * kTileElements);
  }
}

void PackMatrix(const Bf16* src, int64_t stride, int64_t n, int64_t k,
                Bf16* dst) {
  const int64_t block_elements = NumInputBlocks(k) * kTileElements;
  for (int64_t nb = 0; nb < NumOutputBlocks(n); ++nb) {
    const int64_t first = nb * kTileOutputs;
    PackBlock(src + first * stride, stride, std::min(kTileOutputs, n - first),
              k, dst + nb * block_elements);
  }
}

}  // namespace portolan
