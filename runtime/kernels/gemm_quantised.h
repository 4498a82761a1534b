#pragma once

#include "runtime/kernels/gemm_quantised_reference.h"

// Products with quantised weights in vector registers, for rows so few that
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

// Rows that a register tile takes, with their even and odd chains.
constexpr int kQuantisedRows = kWidth == 16 ? 4 : 3;
// Rows up to which such tiles are faster than unpacking.
constexpr int kFewInt8Rows = 6 * kQuantisedRows;
constexpr int kFewInt4Rows = kQuantisedRows;
// Output blocks of a tile.
constexpr int kQuantisedBlocks = kWidth == 16 ? 2 : 1;

// Bytes by which the prefetch runs ahead of the loads.
constexpr int64_t kQuantisedAhead = 4096;

struct QuantisedWeights {
  const uint8_t* w;
  int64_t w_block_stride;  // bytes
  int64_t k_blocks;
  const uint8_t* w_last;  // the last byte worth a prefetch
};

template <typename Element>
struct QuantisedTile : QuantisedWeights {
  const Element* x;
  int64_t x_stride;
  float* c;
  int64_t c_stride;
  bool accumulate;
};

// kWidth bytes as integers.
PORTOLAN_INLINE inline IntVec WidenBytes(const uint8_t* from) {
#if defined(PORTOLAN_EMULATED_WIDTH) || !defined(__AVX2__)
  IntVec v;
  for (int i = 0; i < kWidth; ++i) v[i] = static_cast<int8_t>(from[i]);
  return v;
#elif defined(__AVX512F__)
  // All lanes: gcc 12 warns of the unmasked intrinsic's own source.
  return (IntVec)_mm512_maskz_cvtepi8_epi32(
      0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  return (IntVec)_mm256_cvtepi8_epi32(
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#endif
}

PORTOLAN_INLINE inline UintVec LoadWords(const uint8_t* from) {
  UintVec v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

PORTOLAN_INLINE inline UintVec ScaleBytes(const uint8_t* from) {
  return (UintVec)WidenBytes(from) & 0xffu;
}

PORTOLAN_INLINE inline Vec Int8Scales(const uint8_t* scales) {
  return (Vec)(ScaleBytes(scales) << 23);
}

PORTOLAN_INLINE inline Vec Int8Integers(const uint8_t* q) {
  return __builtin_convertvector(WidenBytes(q), Vec);
}

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
using Chains = Vec[kRows][kBlocks][kParts];

template <int kBlocks, typename Visit>
PORTOLAN_INLINE inline void ForBlocks(Visit visit) {
  PORTOLAN_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    PORTOLAN_UNROLL
    for (int p = 0; p < kParts; ++p) visit(b, p);
  }
}

template <int kRows, int kBlocks, typename Visit>
PORTOLAN_INLINE inline void ForChains(Visit visit) {
  PORTOLAN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    ForBlocks<kBlocks>([&](int b, int p) PORTOLAN_INLINE { visit(r, b, p); });
  }
}

template <int kRows, int kBlocks>
PORTOLAN_INLINE inline void ClearChains(Vec (&chain)[kRows][kBlocks][kParts]) {
  ForChains<kRows, kBlocks>([&](int r, int b, int p)
                                PORTOLAN_INLINE { chain[r][b][p] = Vec{}; });
}

// The running sums, out of memory and into it.
template <typename Tile, int kRows, int kBlocks>
PORTOLAN_INLINE inline void LoadChains(const Tile& t,
                                       Vec (&sum)[kRows][kBlocks][kParts]) {
  ForChains<kRows, kBlocks>([&](int r, int b, int p) PORTOLAN_INLINE {
    const float* c = t.c + r * t.c_stride + b * kLanes + p * kWidth;
    sum[r][b][p] = t.accumulate ? LoadVec(c) : Vec{};
  });
}

template <typename Tile, int kRows, int kBlocks>
PORTOLAN_INLINE inline void StoreChains(
    const Tile& t, const Vec (&sum)[kRows][kBlocks][kParts]) {
  ForChains<kRows, kBlocks>([&](int r, int b, int p) PORTOLAN_INLINE {
    StoreVec(t.c + r * t.c_stride + b * kLanes + p * kWidth, sum[r][b][p]);
  });
}

template <int kRows, int kBlocks>
PORTOLAN_INLINE inline void AddChains(const Vec (&even)[kRows][kBlocks][kParts],
                                      const Vec (&odd)[kRows][kBlocks][kParts],
                                      Vec (&sum)[kRows][kBlocks][kParts]) {
  ForChains<kRows, kBlocks>([&](int r, int b, int p) PORTOLAN_INLINE {
    sum[r][b][p] += even[r][b][p] + odd[r][b][p];
  });
}

// The same where the chains lack the scale of each output.
template <int kRows, int kBlocks>
PORTOLAN_INLINE inline void AddScaledChains(
    const Vec (&even)[kRows][kBlocks][kParts],
    const Vec (&odd)[kRows][kBlocks][kParts],
    const Vec (&scale)[kBlocks][kParts], Vec (&sum)[kRows][kBlocks][kParts]) {
  ForChains<kRows, kBlocks>([&](int r, int b, int p) PORTOLAN_INLINE {
    sum[r][b][p] =
        MultiplyAdd(even[r][b][p] + odd[r][b][p], scale[b][p], sum[r][b][p]);
  });
}

// chain += x * w for one input of every row.
template <int kRows, int kBlocks>
PORTOLAN_INLINE inline void Step(const QuantisedTile<float>& t, const float* x,
                                 const Vec (&w)[kBlocks][kParts],
                                 Vec (&chain)[kRows][kBlocks][kParts]) {
  PORTOLAN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const Vec x_row = Splat(x[r * t.x_stride]);
    ForBlocks<kBlocks>([&](int b, int p) PORTOLAN_INLINE {
      chain[r][b][p] = MultiplyAdd(x_row, w[b][p], chain[r][b][p]);
    });
  }
}

// Runs ahead of the loads by some tiles; where an output block ends, to the one
// after those at work.
class Ahead {
 public:
  Ahead(const QuantisedWeights& t, int64_t tile_bytes,
        int64_t ahead = kQuantisedAhead)
      : t_(t),
        bytes_(ahead / tile_bytes * tile_bytes),
        kb_(bytes_ / tile_bytes) {}

  // While the tiles at `w` and in the blocks after it are at work.
  template <int64_t kBytes, int kBlocks>
  PORTOLAN_INLINE inline void Prefetch(const uint8_t* w) {
    for (; kb_ >= t_.k_blocks; kb_ -= t_.k_blocks) {
      bytes_ += (kBlocks - 1) * t_.w_block_stride;
    }
    ++kb_;
    PORTOLAN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const uint8_t* next = w + b * t_.w_block_stride + bytes_;
      if (next > t_.w_last) continue;
      PORTOLAN_UNROLL
      for (int64_t i = 0; i < kBytes; i += 64) __builtin_prefetch(next + i);
    }
  }

 private:
  const QuantisedWeights& t_;
  int64_t bytes_;  // from the tiles at work
  int64_t kb_;     // the block of K that it has reached
};

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

template <typename Element>
using QuantisedFunction = void (*)(const QuantisedTile<Element>&);

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
template <int kBlocks>
constexpr QuantisedFunction<float> kInt4Any[4] = {
    MultiplyInt4<1, kBlocks>, MultiplyInt4<2, kBlocks>,
    MultiplyInt4<3, kBlocks>, MultiplyInt4<kQuantisedRows, kBlocks>};

// All rows over one group of output blocks, in register tiles of almost equal
// size.
template <int kRows, typename Element>
void MultiplyRows(const QuantisedFunction<Element>* functions, int64_t rows,
                  QuantisedTile<Element> tile) {
  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t left = tiles; left > 0; --left) {
    const int64_t now = (rows + left - 1) / left;
    functions[now - 1](tile);
    tile.x += now * tile.x_stride;
    tile.c += now * tile.c_stride;
    rows -= now;
  }
}

// Functions for 1 .. kRows rows: `whole` for kBlocks output blocks at a time,
// `single` for one.
template <int kRows, int kBlocks, typename Element>
void MultiplyQuantised(const MultiplyArgs& args,
                       const QuantisedFunction<Element>* whole,
                       const QuantisedFunction<Element>* single) {
  QuantisedTile<Element> tile;
  tile.x = static_cast<const Element*>(args.x) + args.first_k_block * kBlockK;
  tile.x_stride = args.x_k_blocks * kBlockK;
  tile.w_block_stride = args.w_block_stride;
  tile.k_blocks = args.k_blocks;
  tile.c_stride = args.c_stride;
  tile.accumulate = args.accumulate;
  tile.w_last = static_cast<const uint8_t*>(args.w_end) - 1;
  for (int64_t block = 0; block < args.num_blocks;) {
    const bool is_whole = block + kBlocks <= args.num_blocks;
    tile.w = static_cast<const uint8_t*>(args.w) + block * args.w_block_stride;
    tile.c = args.c + block * kLanes;
    MultiplyRows<kRows>(is_whole ? whole : single, args.rows, tile);
    block += is_whole ? kBlocks : 1;
  }
}

void MultiplyInt8Rows(const MultiplyArgs& args) {
  MultiplyQuantised<kQuantisedRows, kQuantisedBlocks, float>(
      args, kInt8Any<kQuantisedBlocks>, kInt8Any<1>);
}

void MultiplyInt8InRange(const MultiplyArgs& args) {
  MultiplyQuantised<kQuantisedRows, kQuantisedBlocks, float>(
      args, kInt8InRange<kQuantisedBlocks>, kInt8InRange<1>);
}

void MultiplyInt4Rows(const MultiplyArgs& args) {
  MultiplyQuantised<kQuantisedRows, kQuantisedBlocks, float>(
      args, kInt4Any<kQuantisedBlocks>, kInt4Any<1>);
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

// Two floats that are bf16 as they stand, as a pair of inputs.
inline void StorePair(Vec even, Vec odd, uint16_t* to) {
#if defined(PORTOLAN_EMULATED_WIDTH) || !defined(__AVX512BW__)
  const UintVec both = ((UintVec)even >> 16) | ((UintVec)odd & 0xffff0000u);
#else
  const UintVec both = (UintVec)_mm512_mask_blend_epi16(
      0xaaaaaaaau, (__m512i)((UintVec)even >> 16), (__m512i)odd);
#endif
  __builtin_memcpy(to, &both, sizeof(both));
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

constexpr QuantisedKernel QuantisedVector(int64_t few_rows,
                                          void (*multiply)(const MultiplyArgs&),
                                          void (*unpack)(const void*, int64_t,
                                                         uint16_t*)) {
  QuantisedKernel kernel;
  kernel.few.row_group = kQuantisedRows;
  kernel.few.prepare = WidenRows<uint16_t>;
  kernel.few.multiply = multiply;
  kernel.few_rows = few_rows;
  kernel.unpack = unpack;
  return kernel;
}

constexpr KernelTable WithQuantised(KernelTable table) {
  // Matrix tiles take over where they do so from vectors.
  const int64_t few_int8 =
      table.many_rows > 0 ? table.many_rows - 1 : kFewInt8Rows;
  const int64_t few_int4 =
      table.many_rows > 0 ? table.many_rows - 1 : kFewInt4Rows;
  table.int8 = QuantisedVector(few_int8, MultiplyInt8Rows, UnpackInt8);
  table.int8.multiply_in_range = MultiplyInt8InRange;
  table.int8.in_range = InRange;
  table.int4 = QuantisedVector(few_int4, MultiplyInt4Rows, UnpackInt4);
  return table;
}

}  // namespace
}  // namespace portolan
