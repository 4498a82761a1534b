#pragma once

#include "runtime/kernels/quantised_tile.h"

// Products with weights of kInt4 in vector registers, as those with kInt8
// (gemm_int8.h). Scales of kInt4 are no powers of two, so that they come first.
// Internal to the path_*.cc files.

namespace portolan {
namespace {

PORTOLAN_INLINE inline Vec Int4Scales(const uint8_t* scales) {
  return (Vec)((ScaleBytes(scales) << 20) + kInt4ScaleBase);
}

// Makes a float of a nibble where it stands, without a conversion: below the
// leading bit of 2^23 a nibble that begins at bit `at` counts 2^at, and is 8
// too much, once its top bit is flipped where it is in two's complement.
// Scaling takes both away in one fused step, exactly: the scale has four
// significant bits, and four times (2^23 + 8) has 24. Nibbles that would reach
// into the exponent are read two bytes further on.
constexpr int kNibblesInPlace = 5;

struct NibblePlace {
  uint32_t mask;
  uint32_t flip;  // of the masked bits
  uint32_t at;
  float zero;  // of the scale
};

constexpr NibblePlace PlaceOfNibble(int n) {
  const int at = n < kNibblesInPlace ? 4 * n : 4 * n - 16;
  NibblePlace place{};
  place.mask = 0xfu << at;
  place.flip = Exponent(127 + 23) | (n == 7 ? 8u << at : 0u);
  place.at = static_cast<uint32_t>(at);
  place.zero = -(8388608.0f / static_cast<float>(1u << at) + 8.0f);
  return place;
}

constexpr NibblePlace kNibblePlaces[8] = {
    PlaceOfNibble(0), PlaceOfNibble(1), PlaceOfNibble(2), PlaceOfNibble(3),
    PlaceOfNibble(4), PlaceOfNibble(5), PlaceOfNibble(6), PlaceOfNibble(7)};

// scale / 2^at: the multipliers have enough to do.
PORTOLAN_INLINE inline Vec ScaledDown(Vec scale, const NibblePlace& place) {
  return (Vec)((UintVec)scale - Exponent(place.at));
}

// scale * q: `unit` is scale / 2^at, `zero` scale * place.zero.
PORTOLAN_INLINE inline Vec Int4Weights(UintVec words, UintVec mask,
                                       UintVec flip, Vec unit, Vec zero) {
#if defined(PORTOLAN_EMULATED_WIDTH) || !defined(__AVX512F__)
  const Vec nibble = (Vec)((words & mask) ^ flip);
#else
  const Vec nibble = (Vec)_mm512_ternarylogic_epi32(
      (__m512i)words, (__m512i)mask, (__m512i)flip, 0x6a);
#endif
  return MultiplyAdd(nibble, unit, zero);
}

// In all lanes, and in a register: as an operand in memory it would take a load
// with every use.
PORTOLAN_INLINE inline UintVec SplatWord(uint32_t word) {
  UintVec v = word - UintVec{};
#if !defined(PORTOLAN_EMULATED_WIDTH) && defined(__AVX2__)
  asm("" : "+v"(v));
#endif
  return v;
}

template <int kRows, int kBlocks>
void MultiplyInt4(const QuantisedTile<float>& t) {
  Chains<kRows, kBlocks> sum;
  LoadChains(t, sum);
  const float* x = t.x;
  const uint8_t* w = t.w;
  Ahead ahead(t, kInt4TileBytes);
  for (int64_t kb = 0; kb < t.k_blocks; ++kb, w += kInt4TileBytes) {
    ahead.Prefetch<kInt4TileBytes, kBlocks>(w);
    Vec scale[kBlocks][kParts];
    UintVec words[4][kBlocks][kParts];
    ForBlocks<kBlocks>([&](int b, int p) PORTOLAN_INLINE {
      const uint8_t* tile = w + b * t.w_block_stride;
      scale[b][p] = Int4Scales(tile + kInt4Scales + p * kWidth);
      PORTOLAN_UNROLL
      for (int i = 0; i < 4; ++i) {
        words[i][b][p] = LoadWords(tile + (i * kLanes + p * kWidth) * 4);
      }
    });
    Chains<kRows, kBlocks> even;
    Chains<kRows, kBlocks> odd;
    ClearChains(even);
    ClearChains(odd);
    const auto multiply = [&](const NibblePlace& place) PORTOLAN_INLINE {
      const UintVec mask = SplatWord(place.mask);
      const UintVec flip = SplatWord(place.flip);
      Vec unit[kBlocks][kParts];
      Vec zero[kBlocks][kParts];
      ForBlocks<kBlocks>([&](int b, int p) PORTOLAN_INLINE {
        unit[b][p] = ScaledDown(scale[b][p], place);
        zero[b][p] = scale[b][p] * place.zero;
      });
      PORTOLAN_UNROLL
      for (int i = 0; i < 4; ++i) {
        Vec weights[kBlocks][kParts];
        ForBlocks<kBlocks>([&](int b, int p) PORTOLAN_INLINE {
          weights[b][p] =
              Int4Weights(words[i][b][p], mask, flip, unit[b][p], zero[b][p]);
        });
        Step(t, x + i, weights, i % 2 == 0 ? even : odd);
      }
      x += 4;
    };
    for (int n = 0; n < kNibblesInPlace; ++n) multiply(kNibblePlaces[n]);
    ForBlocks<kBlocks>([&](int b, int p) PORTOLAN_INLINE {
      PORTOLAN_UNROLL
      for (int i = 0; i < 4; ++i) words[i][b][p] >>= 16;
    });
    for (int n = kNibblesInPlace; n < 8; ++n) multiply(kNibblePlaces[n]);
    AddChains(even, odd, sum);
  }
  StoreChains(t, sum);
}

// By number of rows - 1.
template <int kBlocks>
constexpr QuantisedFunction<float> kInt4Any[4] = {
    MultiplyInt4<1, kBlocks>, MultiplyInt4<2, kBlocks>,
    MultiplyInt4<3, kBlocks>, MultiplyInt4<kQuantisedRows, kBlocks>};

void MultiplyInt4Rows(const MultiplyArgs& args) {
  MultiplyQuantised<kQuantisedRows, kQuantisedBlocks, float>(
      args, kInt4Any<kQuantisedBlocks>, kInt4Any<1>);
}

void UnpackInt4(const void* tiles, int64_t num_tiles, uint16_t* to) {
  const auto* w = static_cast<const uint8_t*>(tiles);
  for (int64_t t = 0; t < num_tiles; ++t, w += kInt4TileBytes) {
    PORTOLAN_UNROLL
    for (int64_t i = 0; i < kInt4TileBytes; i += 64) {
      __builtin_prefetch(w + kQuantisedAhead + i);
    }
    PORTOLAN_UNROLL
    for (int p = 0; p < kParts; ++p) {
      const Vec scale = Int4Scales(w + kInt4Scales + p * kWidth);
      UintVec words[4];
      PORTOLAN_UNROLL
      for (int i = 0; i < 4; ++i) {
        words[i] = LoadWords(w + (i * kLanes + p * kWidth) * 4);
      }
      uint16_t* pair = to + t * kTileSize + p * 2 * kWidth;
      const auto unpack = [&](const NibblePlace& place) PORTOLAN_INLINE {
        const UintVec mask = SplatWord(place.mask);
        const UintVec flip = SplatWord(place.flip);
        const Vec unit = ScaledDown(scale, place);
        const Vec zero = scale * place.zero;
        PORTOLAN_UNROLL
        for (int i = 0; i < 4; i += 2, pair += 2 * kLanes) {
          StorePair(Int4Weights(words[i], mask, flip, unit, zero),
                    Int4Weights(words[i + 1], mask, flip, unit, zero), pair);
        }
      };
      for (int n = 0; n < kNibblesInPlace; ++n) unpack(kNibblePlaces[n]);
      PORTOLAN_UNROLL
      for (int i = 0; i < 4; ++i) words[i] >>= 16;
      for (int n = kNibblesInPlace; n < 8; ++n) unpack(kNibblePlaces[n]);
    }
  }
}

}  // namespace
}  // namespace portolan
