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
constexpr int kFewInt8Rows = 2 * kQuantisedRows;
constexpr int kFewInt4Rows = kQuantisedRows;
// Output blocks of a tile.
constexpr int kQuantisedBlocks = kWidth == 16 ? 2 : 1;

// Bytes by which the prefetch runs ahead of the loads.
constexpr int64_t kQuantisedAhead = 4096;

struct QuantisedTile {
  const float* x;
  int64_t x_stride;
  const uint8_t* w;
  int64_t w_block_stride;  // bytes
  int64_t k_blocks;
  float* c;
  int64_t c_stride;
  bool accumulate;
  const uint8_t* w_last;  // the last byte worth a prefetch
};

// kWidth bytes as integers.
inline IntVec WidenBytes(const uint8_t* from) {
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

inline UintVec LoadWords(const uint8_t* from) {
  UintVec v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

inline UintVec ScaleBytes(const uint8_t* from) {
  return (UintVec)WidenBytes(from) & 0xffu;
}

inline Vec Int8Scales(const uint8_t* scales) {
  return (Vec)(ScaleBytes(scales) << 23);
}

inline Vec Int8Integers(const uint8_t* q) {
  return __builtin_convertvector(WidenBytes(q), Vec);
}

inline Vec Int4Scales(const uint8_t* scales) {
  return (Vec)((ScaleBytes(scales) << 20) + kInt4ScaleBase);
}

// A nibble of a word, left where it stands: as an integer it counts so many
// times too much, and 8 too much unless it is the last.
struct NibblePlace {
  uint32_t mask;
  float unit;
  float zero;
};
constexpr NibblePlace kNibblePlaces[8] = {
    {0xfu, 0x1p0f, -8.0f},         {0xf0u, 0x1p-4f, -8.0f},
    {0xf00u, 0x1p-8f, -8.0f},      {0xf000u, 0x1p-12f, -8.0f},
    {0xf0000u, 0x1p-16f, -8.0f},   {0xf00000u, 0x1p-20f, -8.0f},
    {0xf000000u, 0x1p-24f, -8.0f}, {0xf0000000u, 0x1p-28f, 0.0f}};

// scale * q in one fused step, exactly: `unit` is scale * place.unit, `zero`
// scale * place.zero.
inline Vec Int4Weights(const uint8_t* words, uint32_t mask, Vec unit,
                       Vec zero) {
  const IntVec masked = (IntVec)(LoadWords(words) & mask);
  return MultiplyAdd(__builtin_convertvector(masked, Vec), unit, zero);
}

template <int kRows, int kBlocks>
struct Chains {
  Vec v[kRows][kBlocks][kParts];
};

template <int kBlocks, typename Visit>
inline void ForBlocks(Visit visit) {
  PORTOLAN_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    PORTOLAN_UNROLL
    for (int p = 0; p < kParts; ++p) visit(b, p);
  }
}

// The running sums, in or out of memory.
template <int kRows, int kBlocks, typename Visit>
inline void ForSums(const QuantisedTile& t, Visit visit) {
  PORTOLAN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    PORTOLAN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      PORTOLAN_UNROLL
      for (int p = 0; p < kParts; ++p) {
        visit(r, b, p, t.c + r * t.c_stride + b * kLanes + p * kWidth);
      }
    }
  }
}

template <int kRows, int kBlocks>
inline Chains<kRows, kBlocks> LoadChains(const QuantisedTile& t) {
  Chains<kRows, kBlocks> sum;
  ForSums<kRows, kBlocks>(t, [&](int r, int b, int p, const float* c) {
    sum.v[r][b][p] = t.accumulate ? LoadVec(c) : Vec{};
  });
  return sum;
}

template <int kRows, int kBlocks>
inline void StoreChains(const QuantisedTile& t,
                        const Chains<kRows, kBlocks>& sum) {
  ForSums<kRows, kBlocks>(
      t, [&](int r, int b, int p, float* c) { StoreVec(c, sum.v[r][b][p]); });
}

template <int kRows, int kBlocks>
inline void AddChains(const QuantisedTile& t, const Chains<kRows, kBlocks>& a,
                      const Chains<kRows, kBlocks>& b,
                      Chains<kRows, kBlocks>& sum) {
  ForSums<kRows, kBlocks>(t, [&](int r, int block, int p, const float*) {
    sum.v[r][block][p] += a.v[r][block][p] + b.v[r][block][p];
  });
}

// chain += x * w for one input of every row.
template <int kRows, int kBlocks>
inline void Step(const QuantisedTile& t, const float* x,
                 const Vec (&w)[kBlocks][kParts],
                 Chains<kRows, kBlocks>& chain) {
  PORTOLAN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const Vec x_row = Splat(x[r * t.x_stride]);
    PORTOLAN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      PORTOLAN_UNROLL
      for (int p = 0; p < kParts; ++p) {
        chain.v[r][b][p] = MultiplyAdd(x_row, w[b][p], chain.v[r][b][p]);
      }
    }
  }
}

// The same where the chains lack the scale of each output.
template <int kRows, int kBlocks>
inline void AddScaledChains(const QuantisedTile& t,
                            const Chains<kRows, kBlocks>& a,
                            const Chains<kRows, kBlocks>& b,
                            const Vec (&scale)[kBlocks][kParts],
                            Chains<kRows, kBlocks>& sum) {
  ForSums<kRows, kBlocks>(t, [&](int r, int block, int p, const float*) {
    sum.v[r][block][p] = MultiplyAdd(a.v[r][block][p] + b.v[r][block][p],
                                     scale[block][p], sum.v[r][block][p]);
  });
}

template <int64_t kBytes, int kBlocks>
inline void PrefetchTiles(const QuantisedTile& t, const uint8_t* w) {
  PORTOLAN_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    const uint8_t* next = w + b * t.w_block_stride + kQuantisedAhead;
    if (next > t.w_last) continue;
    PORTOLAN_UNROLL
    for (int64_t i = 0; i < kBytes; i += 64) __builtin_prefetch(next + i);
  }
}

// The scales of a K block of tiles that begin at `w`.
template <int kBlocks>
inline void LoadScales(const QuantisedTile& t, const uint8_t* w,
                       Vec (*scales)(const uint8_t*),
                       Vec (&scale)[kBlocks][kParts]) {
  ForBlocks<kBlocks>([&](int block, int p) {
    scale[block][p] = scales(w + block * t.w_block_stride + p * kWidth);
  });
}

// kInRange: the scale of a block comes last.
template <int kRows, int kBlocks, bool kInRange>
void MultiplyInt8(const QuantisedTile& t) {
  using Sums = Chains<kRows, kBlocks>;
  Sums sum = LoadChains<kRows, kBlocks>(t);
  const float* x = t.x;
  const uint8_t* w = t.w;
  for (int64_t kb = 0; kb < t.k_blocks;
       ++kb, x += kBlockK, w += kInt8TileBytes) {
    PrefetchTiles<kInt8TileBytes, kBlocks>(t, w);
    Vec scale[kBlocks][kParts];
    LoadScales<kBlocks>(t, w + kInt8Scales, Int8Scales, scale);
    Sums chain[2] = {};
    for (int64_t pair = 0; pair < kBlockK / 2; ++pair) {
      PORTOLAN_UNROLL
      for (int parity = 0; parity < 2; ++parity) {
        const int64_t k = 2 * pair + parity;
        Vec weights[kBlocks][kParts];
        ForBlocks<kBlocks>([&](int block, int p) {
          weights[block][p] = Int8Integers(w + block * t.w_block_stride +
                                           k * kLanes + p * kWidth);
          if (!kInRange) weights[block][p] *= scale[block][p];
        });
        Step<kRows, kBlocks>(t, x + k, weights, chain[parity]);
      }
    }
    if (kInRange) {
      AddScaledChains(t, chain[0], chain[1], scale, sum);
    } else {
      AddChains(t, chain[0], chain[1], sum);
    }
  }
  StoreChains(t, sum);
}

template <int kRows, int kBlocks>
void MultiplyInt4(const QuantisedTile& t) {
  using Sums = Chains<kRows, kBlocks>;
  Sums sum = LoadChains<kRows, kBlocks>(t);
  const float* x = t.x;
  const uint8_t* w = t.w;
  for (int64_t kb = 0; kb < t.k_blocks; ++kb, w += kInt4TileBytes) {
    PrefetchTiles<kInt4TileBytes, kBlocks>(t, w);
    Vec scale[kBlocks][kParts];
    LoadScales<kBlocks>(t, w + kInt4Scales, Int4Scales, scale);
    Sums chain[2] = {};
    for (const NibblePlace& place : kNibblePlaces) {
      Vec unit[kBlocks][kParts];
      Vec zero[kBlocks][kParts];
      ForBlocks<kBlocks>([&](int block, int p) {
        unit[block][p] = scale[block][p] * place.unit;
        zero[block][p] = scale[block][p] * place.zero;
      });
      PORTOLAN_UNROLL
      for (int j = 0; j < 4; ++j) {
        Vec weights[kBlocks][kParts];
        ForBlocks<kBlocks>([&](int block, int p) {
          weights[block][p] = Int4Weights(
              w + block * t.w_block_stride + (j * kLanes + p * kWidth) * 4,
              place.mask, unit[block][p], zero[block][p]);
        });
        Step<kRows, kBlocks>(t, x + j, weights, chain[j % 2]);
      }
      x += 4;
    }
    AddChains(t, chain[0], chain[1], sum);
  }
  StoreChains(t, sum);
}

using QuantisedFunction = void (*)(const QuantisedTile&);

// By number of rows - 1.
template <int kBlocks>
constexpr QuantisedFunction kInt8Any[4] = {
    MultiplyInt8<1, kBlocks, false>, MultiplyInt8<2, kBlocks, false>,
    MultiplyInt8<3, kBlocks, false>,
    MultiplyInt8<kQuantisedRows, kBlocks, false>};
template <int kBlocks>
constexpr QuantisedFunction kInt8InRange[4] = {
    MultiplyInt8<1, kBlocks, true>, MultiplyInt8<2, kBlocks, true>,
    MultiplyInt8<3, kBlocks, true>,
    MultiplyInt8<kQuantisedRows, kBlocks, true>};
template <int kBlocks>
constexpr QuantisedFunction kInt4Any[4] = {
    MultiplyInt4<1, kBlocks>, MultiplyInt4<2, kBlocks>,
    MultiplyInt4<3, kBlocks>, MultiplyInt4<kQuantisedRows, kBlocks>};

// All rows over one group of output blocks, in register tiles of almost equal
// size.
inline void MultiplyRows(const QuantisedFunction (&functions)[4], int64_t rows,
                         QuantisedTile tile) {
  const int64_t tiles = (rows + kQuantisedRows - 1) / kQuantisedRows;
  for (int64_t left = tiles; left > 0; --left) {
    const int64_t now = (rows + left - 1) / left;
    functions[now - 1](tile);
    tile.x += now * tile.x_stride;
    tile.c += now * tile.c_stride;
    rows -= now;
  }
}

inline void MultiplyQuantised(const MultiplyArgs& args,
                              const QuantisedFunction (&whole)[4],
                              const QuantisedFunction (&single)[4]) {
  QuantisedTile tile;
  tile.x = static_cast<const float*>(args.x) + args.first_k_block * kBlockK;
  tile.x_stride = args.x_k_blocks * kBlockK;
  tile.w_block_stride = args.w_block_stride;
  tile.k_blocks = args.k_blocks;
  tile.c_stride = args.c_stride;
  tile.accumulate = args.accumulate;
  tile.w_last = static_cast<const uint8_t*>(args.w_end) - 1;
  for (int64_t block = 0; block < args.num_blocks;) {
    const bool is_whole = block + kQuantisedBlocks <= args.num_blocks;
    tile.w = static_cast<const uint8_t*>(args.w) + block * args.w_block_stride;
    tile.c = args.c + block * kLanes;
    MultiplyRows(is_whole ? whole : single, args.rows, tile);
    block += is_whole ? kQuantisedBlocks : 1;
  }
}

void MultiplyInt8Rows(const MultiplyArgs& args) {
  MultiplyQuantised(args, kInt8Any<kQuantisedBlocks>, kInt8Any<1>);
}

void MultiplyInt8InRange(const MultiplyArgs& args) {
  MultiplyQuantised(args, kInt8InRange<kQuantisedBlocks>, kInt8InRange<1>);
}

void MultiplyInt4Rows(const MultiplyArgs& args) {
  MultiplyQuantised(args, kInt4Any<kQuantisedBlocks>, kInt4Any<1>);
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
  const UintVec both = ((UintVec)even >> 16) | ((UintVec)odd & 0xffff0000u);
  __builtin_memcpy(to, &both, sizeof(both));
}

void UnpackInt8(const void* tiles, int64_t num_tiles, uint16_t* to) {
  const auto* w = static_cast<const uint8_t*>(tiles);
  for (int64_t t = 0; t < num_tiles; ++t, w += kInt8TileBytes) {
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
    for (int p = 0; p < kParts; ++p) {
      const Vec scale = Int4Scales(w + kInt4Scales + p * kWidth);
      const uint8_t* words = w + p * kWidth * 4;
      uint16_t* pair = to + t * kTileSize + p * 2 * kWidth;
      for (const NibblePlace& place : kNibblePlaces) {
        const Vec unit = scale * place.unit;
        const Vec zero = scale * place.zero;
        PORTOLAN_UNROLL
        for (int j = 0; j < 4; j += 2, pair += 2 * kLanes) {
          StorePair(
              Int4Weights(words + j * kLanes * 4, place.mask, unit, zero),
              Int4Weights(words + (j + 1) * kLanes * 4, place.mask, unit, zero),
              pair);
        }
      }
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
  table.int8 = QuantisedVector(kFewInt8Rows, MultiplyInt8Rows, UnpackInt8);
  table.int8.multiply_in_range = MultiplyInt8InRange;
  table.int8.in_range = InRange;
  table.int4 = QuantisedVector(kFewInt4Rows, MultiplyInt4Rows, UnpackInt4);
  return table;
}

}  // namespace
}  // namespace portolan
