#pragma once

#include <cstdint>

#include "runtime/base/bf16.h"
#include "runtime/kernels/weight_format.h"

namespace portolan {

// Outputs of one tile, inputs of one tile (a block of K), and its elements.
inline constexpr int64_t kTileOutputs = 16;
inline constexpr int64_t kTileInputs = 32;
inline constexpr int64_t kTileElements = kTileOutputs * kTileInputs;

// Weights [n outputs, k inputs] in tiles of 16 outputs x 32 inputs, the pairs
// along K interleaved as TDPBF16PS reads them: the tile of output block `nb`
// and input block `kb` starts at (nb * k_blocks + kb) * 512 and is
// [16 pairs][16 outputs][2]. n and k are padded with zeros. The same layout
// serves every path. Tiles of a quantised format (quantise.h) take the same
// places, smaller. 64-byte aligned; somebody else owns the memory.
struct PackedMatrix {
  const void* data = nullptr;
  int64_t n = 0;
  int64_t k = 0;
  WeightFormat format = WeightFormat::kBf16;
};

constexpr int64_t NumOutputBlocks(int64_t n) {
  return (n + kTileOutputs - 1) / kTileOutputs;
}
constexpr int64_t NumInputBlocks(int64_t k) {
  return (k + kTileInputs - 1) / kTileInputs;
}

// Bytes of a packed [n, k] matrix, padding included.
constexpr int64_t PackedBytes(int64_t n, int64_t k,
                              WeightFormat format = WeightFormat::kBf16) {
  return NumOutputBlocks(n) * NumInputBlocks(k) * TileBytes(format);
}

// Packs one block of (at most) 16 outputs: `src` is row-major [n, k] with
// `stride` elements between rows, 1 <= n <= 16; writes NumInputBlocks(k) tiles.
void PackBlock(const Bf16* src, int64_t stride, int64_t n, int64_t k,
               Bf16* dst);

// Packs a whole matrix: row-major [n, k] with `stride` elements between rows;
// writes PackedBytes(n, k) bytes. Thread-safe.
void PackMatrix(const Bf16* src, int64_t stride, int64_t n, int64_t k,
                Bf16* dst);

}  // namespace portolan
