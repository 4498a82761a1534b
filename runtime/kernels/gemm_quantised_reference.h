#pragma once

#include "runtime/kernels/gemm_reference.h"

// Quantised tiles (quantise.h) as the bf16 tiles that they stand for. Internal
// to the path_*.cc files.

namespace portolan {
namespace {

constexpr int64_t kInt8TileBytes = 528;
constexpr int64_t kInt4TileBytes = 272;

// Where the scales begin in a tile.
constexpr int64_t kInt8Scales = 512;
constexpr int64_t kInt4Scales = 256;

// The bits of a float whose exponent field is this.
constexpr uint32_t Exponent(uint32_t field) { return field << 23; }
// What a scale byte of kInt4, shifted to the exponent, lacks.
constexpr uint32_t kInt4ScaleBase = Exponent(127 - 24);

inline float FloatOfBits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint16_t UpperHalf(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

void UnpackInt8Reference(const void* tiles, int64_t num_tiles, uint16_t* to) {
  const auto* tile = static_cast<const uint8_t*>(tiles);
  for (int64_t t = 0; t < num_tiles; ++t, tile += kInt8TileBytes) {
    for (int64_t k = 0; k < kBlockK; ++k) {
      for (int64_t i = 0; i < kLanes; ++i) {
        const auto q = static_cast<int8_t>(tile[k * kLanes + i]);
        const float scale = FloatOfBits(Exponent(tile[kInt8Scales + i]));
        to[t * kTileSize + (k / 2 * kLanes + i) * 2 + k % 2] =
            UpperHalf(static_cast<float>(q) * scale);
      }
    }
  }
}

void UnpackInt4Reference(const void* tiles, int64_t num_tiles, uint16_t* to) {
  const auto* tile = static_cast<const uint8_t*>(tiles);
  for (int64_t t = 0; t < num_tiles; ++t, tile += kInt4TileBytes) {
    for (int64_t k = 0; k < kBlockK; ++k) {
      for (int64_t i = 0; i < kLanes; ++i) {
        // Input 4 n + w: nibble n of word w, in little-endian bytes.
        const int64_t nibble = k / 4;
        const uint8_t both = tile[(k % 4 * kLanes + i) * 4 + nibble / 2];
        const int stored = nibble % 2 == 0 ? both & 15 : both >> 4;
        const int q = (nibble == 7 ? stored ^ 8 : stored) - 8;
        const float scale = FloatOfBits(
            (uint32_t{tile[kInt4Scales + i]} << 20) + kInt4ScaleBase);
        to[t * kTileSize + (k / 2 * kLanes + i) * 2 + k % 2] =
            UpperHalf(static_cast<float>(q) * scale);
      }
    }
  }
}

constexpr KernelTable WithQuantisedReference(KernelTable table) {
  table.int8.unpack = UnpackInt8Reference;
  table.int4.unpack = UnpackInt4Reference;
  return table;
}

}  // namespace
}  // namespace portolan
