#pragma once

#include "runtime/kernels/gemm_quantised_reference.h"

// Products with quantised weights in vector registers, for rows so few that
// reading the weights is what takes the time: lanes are outputs, and a weight
// becomes its float in a register. Internal to the path_*.cc files.
//
// An integer q becomes scale * q without a conversion: put below the leading
// bit of a float whose unit in the last place is the scale, it only needs that
// float subtracted again. All of it is exact.

namespace portolan {
namespace {

// Rows that a register tile takes, with their even and odd chains.
constexpr int kQuantisedRows = kWidth == 16 ? 4 : 3;
// Output blocks of a tile: two streams keep memory busier than one.
template <int kRows>
constexpr int kInt8Blocks = kWidth == 16 || kRows == 1 ? 2 : 1;
template <int kRows>
constexpr int kInt4Blocks = kWidth == 16 ? 2 : 1;

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

// 1.5 * 2^23 times each scale: integers of 22 bits fit below its leading bits.
inline Vec Int8Magic(const uint8_t* scales) {
  return (Vec)(((ScaleBytes(scales) + 23u) << 23) | 0x400000u);
}

inline Vec Int8Weights(const uint8_t* q, Vec magic) {
  return (Vec)(WidenBytes(q) + (IntVec)magic) - magic;
}

inline Vec Int4Scales(const uint8_t* scales) {
  return (Vec)((ScaleBytes(scales) << 20) + kInt4ScaleBase);
}

// The nibble at bits [4 i, 4 i + 4) of each word, i < 4.
struct NibblePlace {
  uint32_t mask;
  uint32_t magic;    // bits of the float whose unit lies at bit 4 i
  float minus_zero;  // - (that float + 8)
};
constexpr NibblePlace kNibblePlaces[4] = {
    {0xf, Exponent(127 + 23), -8388616.0f},
    {0xf0, Exponent(127 + 19), -524296.0f},
    {0xf00, Exponent(127 + 15), -32776.0f},
    {0xf000, Exponent(127 + 11), -2056.0f}};

// scale * (nibble - 8) in one fused step: `shift` is scale * minus_zero, exact
// because scales have four significant bits.
inline Vec Int4Weights(const uint8_t* words, const NibblePlace& place,
                       Vec scale, Vec shift) {
  const UintVec raised = (LoadWords(words) & place.mask) | place.magic;
  return MultiplyAdd((Vec)raised, scale, shift);
}

template <int kRows, int kBlocks>
struct Chains {
  Vec v[kRows][kBlocks][kParts];
};

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

template <int kRows, int kBlocks>
void MultiplyInt8(const QuantisedTile& t) {
  using Sums = Chains<kRows, kBlocks>;
  Sums sum = LoadChains<kRows, kBlocks>(t);
  const float* x = t.x;
  const uint8_t* w = t.w;
  for (int64_t kb = 0; kb < t.k_blocks;
       ++kb, x += kBlockK, w += kInt8TileBytes) {
    PrefetchTiles<kInt8TileBytes, kBlocks>(t, w);
    Vec magic[kBlocks][kParts];
    PORTOLAN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      PORTOLAN_UNROLL
      for (int p = 0; p < kParts; ++p) {
        magic[b][p] =
            Int8Magic(w + b * t.w_block_stride + kInt8Scales + p * kWidth);
      }
    }
    Sums chain[2] = {};
    for (int64_t pair = 0; pair < kBlockK / 2; ++pair) {
      PORTOLAN_UNROLL
      for (int parity = 0; parity < 2; ++parity) {
        const int64_t k = 2 * pair + parity;
        Vec weights[kBlocks][kParts];
        PORTOLAN_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
          PORTOLAN_UNROLL
          for (int p = 0; p < kParts; ++p) {
            weights[b][p] =
                Int8Weights(w + b * t.w_block_stride + k * kLanes + p * kWidth,
                            magic[b][p]);
          }
        }
        Step<kRows, kBlocks>(t, x + k, weights, chain[parity]);
      }
    }
    AddChains(t, chain[0], chain[1], sum);
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
    PORTOLAN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      PORTOLAN_UNROLL
      for (int p = 0; p < kParts; ++p) {
        scale[b][p] =
            Int4Scales(w + b * t.w_block_stride + kInt4Scales + p * kWidth);
      }
    }
    Sums chain[2] = {};
    for (int64_t nibble = 0; nibble < 8; ++nibble, x += 4) {
      const NibblePlace& place = kNibblePlaces[nibble % 4];
      // The upper half of a word is the lower one two bytes on.
      const uint8_t* words = w + nibble / 4 * 2;
      Vec shift[kBlocks][kParts];
      PORTOLAN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        PORTOLAN_UNROLL
        for (int p = 0; p < kParts; ++p) {
          shift[b][p] = scale[b][p] * place.minus_zero;
        }
      }
      PORTOLAN_UNROLL
      for (int j = 0; j < 4; ++j) {
        Vec weights[kBlocks][kParts];
        PORTOLAN_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
          PORTOLAN_UNROLL
          for (int p = 0; p < kParts; ++p) {
            weights[b][p] = Int4Weights(
                words + b * t.w_block_stride + (j * kLanes + p * kWidth) * 4,
                place, scale[b][p], shift[b][p]);
          }
        }
        Step<kRows, kBlocks>(t, x + j, weights, chain[j % 2]);
      }
    }
    AddChains(t, chain[0], chain[1], sum);
  }
  StoreChains(t, sum);
}

using QuantisedFunction = void (*)(const QuantisedTile&);

// By number of rows - 1; [1] is for the last block of an odd number.
constexpr QuantisedFunction kInt8Functions[4][2] = {
    {MultiplyInt8<1, kInt8Blocks<1>>, MultiplyInt8<1, 1>},
    {MultiplyInt8<2, kInt8Blocks<2>>, MultiplyInt8<2, 1>},
    {MultiplyInt8<3, kInt8Blocks<3>>, MultiplyInt8<3, 1>},
    {MultiplyInt8<kQuantisedRows, kInt8Blocks<4>>,
     MultiplyInt8<kQuantisedRows, 1>}};
constexpr int kInt8BlocksOf[4] = {kInt8Blocks<1>, kInt8Blocks<2>,
                                  kInt8Blocks<3>, kInt8Blocks<4>};
constexpr QuantisedFunction kInt4Functions[4][2] = {
    {MultiplyInt4<1, kInt4Blocks<1>>, MultiplyInt4<1, 1>},
    {MultiplyInt4<2, kInt4Blocks<2>>, MultiplyInt4<2, 1>},
    {MultiplyInt4<3, kInt4Blocks<3>>, MultiplyInt4<3, 1>},
    {MultiplyInt4<kQuantisedRows, kInt4Blocks<4>>,
     MultiplyInt4<kQuantisedRows, 1>}};
constexpr int kInt4BlocksOf[4] = {kInt4Blocks<1>, kInt4Blocks<2>,
                                  kInt4Blocks<3>, kInt4Blocks<4>};

// args.rows <= kQuantisedRows.
inline void MultiplyQuantised(const MultiplyArgs& args,
                              const QuantisedFunction (&functions)[2],
                              int blocks) {
  QuantisedTile tile;
  tile.x = static_cast<const float*>(args.x) + args.first_k_block * kBlockK;
  tile.x_stride = args.x_k_blocks * kBlockK;
  tile.w_block_stride = args.w_block_stride;
  tile.k_blocks = args.k_blocks;
  tile.c_stride = args.c_stride;
  tile.accumulate = args.accumulate;
  tile.w_last = static_cast<const uint8_t*>(args.w_end) - 1;
  for (int64_t block = 0; block < args.num_blocks;) {
    const bool whole = block + blocks <= args.num_blocks;
    tile.w = static_cast<const uint8_t*>(args.w) + block * args.w_block_stride;
    tile.c = args.c + block * kLanes;
    functions[whole ? 0 : 1](tile);
    block += whole ? blocks : 1;
  }
}

void MultiplyInt8Rows(const MultiplyArgs& args) {
  const int64_t i = args.rows - 1;
  MultiplyQuantised(args, kInt8Functions[i], kInt8BlocksOf[i]);
}

void MultiplyInt4Rows(const MultiplyArgs& args) {
  const int64_t i = args.rows - 1;
  MultiplyQuantised(args, kInt4Functions[i], kInt4BlocksOf[i]);
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
      const Vec magic = Int8Magic(w + kInt8Scales + p * kWidth);
      const uint8_t* q = w + p * kWidth;
      uint16_t* pair = to + t * kTileSize + p * 2 * kWidth;
      for (int64_t k = 0; k < kBlockK; k += 2, pair += 2 * kLanes) {
        StorePair(Int8Weights(q + k * kLanes, magic),
                  Int8Weights(q + (k + 1) * kLanes, magic), pair);
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
      uint16_t* pair = to + t * kTileSize + p * 2 * kWidth;
      for (int64_t nibble = 0; nibble < 8; ++nibble) {
        const NibblePlace& place = kNibblePlaces[nibble % 4];
        const Vec shift = scale * place.minus_zero;
        const uint8_t* words = w + nibble / 4 * 2 + p * kWidth * 4;
        PORTOLAN_UNROLL
        for (int j = 0; j < 4; j += 2, pair += 2 * kLanes) {
          StorePair(
              Int4Weights(words + j * kLanes * 4, place, scale, shift),
              Int4Weights(words + (j + 1) * kLanes * 4, place, scale, shift),
              pair);
        }
      }
    }
  }
}

constexpr QuantisedKernel QuantisedVector(void (*multiply)(const MultiplyArgs&),
                                          void (*unpack)(const void*, int64_t,
                                                         uint16_t*)) {
  QuantisedKernel kernel;
  kernel.few.row_group = kQuantisedRows;
  kernel.few.prepare = WidenRows<uint16_t>;
  kernel.few.multiply = multiply;
  kernel.few_rows = kQuantisedRows;
  kernel.unpack = unpack;
  return kernel;
}

constexpr KernelTable WithQuantised(KernelTable table) {
  table.int8 = QuantisedVector(MultiplyInt8Rows, UnpackInt8);
  table.int4 = QuantisedVector(MultiplyInt4Rows, UnpackInt4);
  return table;
}

}  // namespace
}  // namespace portolan
