#include "runtime/kernels/packed_matrix.h"

#include <algorithm>
#include <cstring>

namespace portolan {
namespace {

// One tile: `rows` x `cols` elements of `src`, zeros beyond.
void PackTile(const Bf16* src, int64_t stride, int64_t rows, int64_t cols,
              Bf16* dst) {
  if (rows < kTileOutputs || cols < kTileInputs) {
    std::fill_n(dst, kTileElements, Bf16{});
  }
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
