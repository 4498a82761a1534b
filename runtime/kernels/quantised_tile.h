#pragma once

#include "runtime/kernels/gemm_quantised_reference.h"

// What products with quantised weights in vector registers share: register
// tiles with an even and an odd chain for each output, prefetching, and the
// walk over rows and output blocks. Internal to the path_*.cc files.

namespace portolan {
namespace {

// Rows that a register tile takes, with their even and odd chains.
constexpr int kQuantisedRows = kWidth == 16 ? 4 : 3;
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

template <typename Element>
using QuantisedFunction = void (*)(const QuantisedTile<Element>&);

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

}  // namespace
}  // namespace portolan
