#pragma once

#include "runtime/kernels/quantised_tile.h"

// Products with weights of kInt8 in vector registers, for rows so few that
// reading the weights is what takes the time: lanes are outputs, and a weight
// becomes its float in a register. Internal to the path_*.cc files.
//
// Scales of kInt8 are powers of two, and those commute with rounding as long as
// nothing overflows or becomes denormal: x * (scale * q), summed over a block,
// has the bits of (x * q, summed) * scale. Where all x are zero or between
// 2^-60 and 2^60 that is so, for scales lie between 2^-40 and 2^40 and the
// least bit of a product, 2^-107, is far above the denormals; the scale then
// costs one operation a block instead of one a weight.

namespace portolan {
namespace {

PORTOLAN_INLINE inline Vec Int8Scales(const uint8_t* scales) {
  return (Vec)(ScaleBytes(scales) << 23);
}

PORTOLAN_INLINE inline Vec Int8Integers(const uint8_t* q) {
  return __builtin_convertvector(WidenBytes(q), Vec);
}

// kInRange: the scale of a block comes last.
template <int kRows, int kBlocks, bool kInRange>
void MultiplyInt8(const QuantisedTile<float>& t) {
  Chains<kRows, kBlocks> sum;
  LoadChains(t, sum);
  const float* x = t.x;
  const uint8_t* w = t.w;
  Ahead ahead(t, kInt8TileBytes);
  for (int64_t kb = 0; kb < t.k_blocks;
       ++kb, x += kBlockK, w += kInt8TileBytes) {
    ahead.Prefetch<kInt8TileBytes, kBlocks>(w);
    Vec scale[kBlocks][kParts];
    ForBlocks<kBlocks>([&](int b, int p) PORTOLAN_INLINE {
      scale[b][p] =
          Int8Scales(w + b * t.w_block_stride + kInt8Scales + p * kWidth);
    });
    const auto weights = [&](int64_t k,
                             Vec(&to)[kBlocks][kParts]) PORTOLAN_INLINE {
      ForBlocks<kBlocks>([&](int b, int p) PORTOLAN_INLINE {
        to[b][p] =
            Int8Integers(w + b * t.w_block_stride + k * kLanes + p * kWidth);
        if (!kInRange) to[b][p] *= scale[b][p];
      });
    };
    Chains<kRows, kBlocks> even;
    Chains<kRows, kBlocks> odd;
    ClearChains(even);
    ClearChains(odd);
    for (int64_t k = 0; k < kBlockK; k += 2) {
      Vec of_k[kBlocks][kParts];
      weights(k, of_k);
      Step(t, x + k, of_k, even);
      weights(k + 1, of_k);
      Step(t, x + k + 1, of_k, odd);
    }
    if (kInRange) {
      AddScaledChains(even, odd, scale, sum);
    } else {
      AddChains(even, odd, sum);
    }
  }
  StoreChains(t, sum);
}

// By number of rows - 1.
template <int kBlocks>
constexpr QuantisedFunction<float> kInt8Any[4] = {
    MultiplyInt8<1, kBlocks, false>, MultiplyInt8<2, kBlocks, false>,
    MultiplyInt8<3, kBlocks, false>,
    MultiplyInt8<kQuantisedRows, kBlocks, false>};
template <int kBlocks>
constexpr QuantisedFunction<float> kInt8InRange[4] = {
    MultiplyInt8<1, kBlocks, true>, MultiplyInt8<2, kBlocks, true>,
    MultiplyInt8<3, kBlocks, true>,
    MultiplyInt8<kQuantisedRows, kBlocks, true>};
void MultiplyInt8Rows(const MultiplyArgs& args) {
  MultiplyQuantised<kQuantisedRows, kQuantisedBlocks, float>(
      args, kInt8Any<kQuantisedBlocks>, kInt8Any<1>);
}

void MultiplyInt8InRange(const MultiplyArgs& args) {
  MultiplyQuantised<kQuantisedRows, kQuantisedBlocks, float>(
      args, kInt8InRange<kQuantisedBlocks>, kInt8InRange<1>);
}

// True if every x is zero or between 2^-60 and 2^60. `count` is a multiple of
// 32.
bool InRange(const void* x, int64_t count) {
  const auto* from = static_cast<const uint8_t*>(x);
  constexpr uint32_t kLeast = Exponent(127 - 60);
  constexpr uint32_t kSpan = Exponent(127 + 60) - kLeast;
  IntVec outside = {};
  for (int64_t i = 0; i < count; i += kWidth) {
    const UintVec bits = LoadWords(from + i * 4) & 0x7fffffffu;
    outside |= (IntVec)((bits - kLeast > kSpan) & (bits != 0u));
  }
  int32_t any = 0;
  for (int i = 0; i < kWidth; ++i) any |= outside[i];
  return any == 0;
}

void UnpackInt8(const void* tiles, int64_t num_tiles, uint16_t* to) {
  const auto* w = static_cast<const uint8_t*>(tiles);
  for (int64_t t = 0; t < num_tiles; ++t, w += kInt8TileBytes) {
    PORTOLAN_UNROLL
    for (int64_t i = 0; i < kInt8TileBytes; i += 64) {
      __builtin_prefetch(w + kQuantisedAhead + i);
    }
    PORTOLAN_UNROLL
    for (int p = 0; p < kParts; ++p) {
      const Vec scale = Int8Scales(w + kInt8Scales + p * kWidth);
      const uint8_t* q = w + p * kWidth;
      uint16_t* pair = to + t * kTileSize + p * 2 * kWidth;
      for (int64_t k = 0; k < kBlockK; k += 2, pair += 2 * kLanes) {
        StorePair(Int8Integers(q + k * kLanes) * scale,
                  Int8Integers(q + (k + 1) * kLanes) * scale, pair);
      }
    }
  }
}

}  // namespace
}  // namespace portolan
