#pragma once

#include "runtime/kernels/gemm_reference.h"

// The matrix product in vector registers: lanes are outputs, x is broadcast.
// Per block of K every (row, output) has its even and its odd chain in
// registers; the running sum is touched once per block only. Internal to the
// path_*.cc files.
//
// What is done with x and the weights is a Steps class: it says what x is made
// of (Element), how many inputs a step takes (kInputs), and lengthens the even
// and the odd chains by them (Step).

namespace portolan {
namespace {

// Register tile: rows x output blocks. 3 x 1 fills 12 of AVX2's 16 registers
// with chains, 6 x 2 fills 24 of AVX-512's 32.
constexpr int kTileRows = kWidth == 16 ? 6 : 3;
constexpr int kTileBlocks = kWidth == 16 ? 2 : 1;

// Tiles of weights, and elements, by which the prefetch runs ahead of the
// loads, per block.
constexpr int64_t kTilesAhead = 8;
constexpr int64_t kAhead = kTilesAhead * kTileSize;

template <typename Element>
struct VectorTile {
  const Element* x;
  int64_t x_stride;
  const uint16_t* w;
  int64_t w_block_stride;
  int64_t k_blocks;
  float* c;
  int64_t c_stride;
  bool accumulate;
  const uint16_t* w_last;  // the last tile worth a prefetch
  // What comes next, fetched during this tile: so many lines with every block
  // of K, for each output block.
  const uint16_t* next;
  int64_t next_stride;
  int64_t next_lines;
};

constexpr int64_t kLine = 32;  // bf16 elements of a cache line
constexpr int64_t kTileLines = kTileSize / kLine;

// Spreads the fetching of the next weights over the register tiles of the
// present ones, so that memory does not idle while later tiles compute on
// what the first one brought into the cache.
template <int kBlocks, typename Tile>
inline void FetchNext(const Tile& t, int64_t kb) {
  const uint16_t* from = t.next + kb * t.next_lines * kLine;
  for (int64_t i = 0; i < t.next_lines; ++i, from += kLine) {
    PORTOLAN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const uint16_t* line = from + b * t.next_stride;
      __builtin_prefetch(line < t.w_last ? line : t.w_last, 0, 2);
    }
  }
}

// x in f32, weights widened to it: one input of each parity in a step.
struct FloatSteps {
  using Element = float;
  static constexpr int64_t kInputs = 2;

  template <int kRows, int kBlocks>
  static void Step(const VectorTile<float>& t, const float* x,
                   const uint16_t* w, Vec (&even)[kRows][kBlocks][kParts],
                   Vec (&odd)[kRows][kBlocks][kParts]) {
    StepChains<false>(t, x, w, even);
    StepChains<true>(t, x + 1, w, odd);
  }

 private:
  // The chains of one parity: chain += x * w for one pair of K, where `x`
  // points to the element of that parity and `pair` to 16 interleaved outputs.
  template <bool kOdd, int kRows, int kBlocks>
  static void StepChains(const VectorTile<float>& t, const float* x,
                         const uint16_t* pair,
                         Vec (&chain)[kRows][kBlocks][kParts]) {
    // Hides from the compiler that both parities load the same words: keeping
    // them would cost registers that the chains need.
    asm volatile("" : "+r"(pair));
    Vec w[kBlocks][kParts];
    PORTOLAN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      PORTOLAN_UNROLL
      for (int p = 0; p < kParts; ++p) {
        UintVec both;
        __builtin_memcpy(&both, pair + b * t.w_block_stride + p * 2 * kWidth,
                         sizeof(both));
        w[b][p] = kOdd ? (Vec)(both & 0xffff0000u) : (Vec)(both << 16);
      }
    }
    PORTOLAN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Vec x_row = Splat(x[r * t.x_stride]);
      PORTOLAN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        PORTOLAN_UNROLL
        for (int p = 0; p < kParts; ++p) {
          chain[r][b][p] = MultiplyAdd(x_row, w[b][p], chain[r][b][p]);
        }
      }
    }
  }
};

template <typename Steps, int kRows, int kBlocks, bool kPrefetch>
void MultiplyTile(const VectorTile<typename Steps::Element>& t) {
  Vec sum[kRows][kBlocks][kParts];
  PORTOLAN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    PORTOLAN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      PORTOLAN_UNROLL
      for (int p = 0; p < kParts; ++p) {
        const float* c = t.c + r * t.c_stride + b * kLanes + p * kWidth;
        sum[r][b][p] = t.accumulate ? LoadVec(c) : Vec{};
      }
    }
  }
  const typename Steps::Element* x = t.x;
  const uint16_t* w = t.w;
  // The end of a block leads to the one after those at work.
  int64_t ahead_kb = kTilesAhead;
  int64_t skip = 0;
  for (int64_t kb = 0; kb < t.k_blocks; ++kb, x += kBlockK, w += kTileSize) {
    for (; kPrefetch && kBlocks > 1 && ahead_kb >= t.k_blocks;
         ahead_kb -= t.k_blocks) {
      skip += (kBlocks - 1) * t.w_block_stride;
    }
    ++ahead_kb;
    FetchNext<kBlocks>(t, kb);
    Vec even[kRows][kBlocks][kParts] = {};
    Vec odd[kRows][kBlocks][kParts] = {};
    const uint16_t* ahead[kBlocks];
    PORTOLAN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const uint16_t* next = w + b * t.w_block_stride + kAhead + skip;
      ahead[b] = next < t.w_last ? next : t.w_last;
    }
    for (int64_t k = 0; k < kBlockK; k += Steps::kInputs) {
      PORTOLAN_UNROLL
      for (int b = 0; b < kBlocks && kPrefetch; ++b) {
        PORTOLAN_UNROLL
        for (int64_t line = 0; line < Steps::kInputs * kLanes; line += kLine) {
          __builtin_prefetch(ahead[b] + k * kLanes + line);
        }
      }
      Steps::Step(t, x + k, w + k * kLanes, even, odd);
    }
    PORTOLAN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      PORTOLAN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        PORTOLAN_UNROLL
        for (int p = 0; p < kParts; ++p) {
          sum[r][b][p] += even[r][b][p] + odd[r][b][p];
        }
      }
    }
  }
  PORTOLAN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    PORTOLAN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      PORTOLAN_UNROLL
      for (int p = 0; p < kParts; ++p) {
        StoreVec(t.c + r * t.c_stride + b * kLanes + p * kWidth, sum[r][b][p]);
      }
    }
  }
}

template <typename Steps>
using TileFunction = void (*)(const VectorTile<typename Steps::Element>&);

// By number of rows - 1.
template <typename Steps, int kBlocks, bool kPrefetch>
constexpr TileFunction<Steps> kTileFunctions[6] = {
    MultiplyTile<Steps, 1, kBlocks, kPrefetch>,
    MultiplyTile<Steps, 2, kBlocks, kPrefetch>,
    MultiplyTile<Steps, 3, kBlocks, kPrefetch>,
    MultiplyTile<Steps, kTileRows == 6 ? 4 : 3, kBlocks, kPrefetch>,
    MultiplyTile<Steps, kTileRows == 6 ? 5 : 3, kBlocks, kPrefetch>,
    MultiplyTile<Steps, kTileRows == 6 ? 6 : 3, kBlocks, kPrefetch>};

// All rows over one group of output blocks, in register tiles of almost equal
// size: one row alone takes nearly the time of two. They share the fetching of
// `lines` lines a block of K at tile.next; the first one fetches its own
// weights too if they are `cold`.
template <typename Steps, int kBlocks>
void MultiplyRowTiles(VectorTile<typename Steps::Element> tile, int64_t rows,
                      int64_t lines, bool cold) {
  int64_t left = rows;
  int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t share = (lines + tiles - 1) / tiles;
  for (int64_t done = 0; tiles > 0; --tiles, done += share) {
    tile.next_lines = done < lines ? share : 0;
    const int64_t now = (left + tiles - 1) / tiles;
    if (left == rows && cold) {
      kTileFunctions<Steps, kBlocks, true>[now - 1](tile);
    } else {
      kTileFunctions<Steps, kBlocks, false>[now - 1](tile);
    }
    tile.x += now * tile.x_stride;
    tile.c += now * tile.c_stride;
    tile.next += tile.next_lines * tile.k_blocks * kLine;
    left -= now;
  }
}

// The same from packed weights: the first tile brings them into the cache, and
// where others follow, the next output blocks too.
template <typename Steps, int kBlocks>
void MultiplyBlocks(const MultiplyArgs& args,
                    VectorTile<typename Steps::Element> tile) {
  tile.next = tile.w + kBlocks * tile.w_block_stride;
  tile.next_stride = tile.w_block_stride;
  const bool cold = args.w_end != nullptr;
  const bool fetch = cold && args.rows > kTileRows && tile.next <= tile.w_last;
  MultiplyRowTiles<Steps, kBlocks>(tile, args.rows, fetch ? kTileLines : 0,
                                   cold);
}

template <typename Steps>
void MultiplyVector(const MultiplyArgs& args) {
  using Element = typename Steps::Element;
  VectorTile<Element> tile{};
  tile.x = static_cast<const Element*>(args.x) + args.first_k_block * kBlockK;
  tile.x_stride = args.x_k_blocks * kBlockK;
  tile.w_block_stride = args.w_block_stride;
  tile.k_blocks = args.k_blocks;
  tile.c_stride = args.c_stride;
  tile.accumulate = args.accumulate;
  tile.w_last = args.w_end == nullptr
                    ? nullptr
                    : static_cast<const uint16_t*>(args.w_end) - kTileSize;
  // A single row waits for memory, which serves two streams better than one.
  const bool pairs = kTileBlocks == 2 || args.rows == 1;
  int64_t block = 0;
  while (block < args.num_blocks) {
    tile.w = static_cast<const uint16_t*>(args.w) + block * args.w_block_stride;
    tile.c = args.c + block * kLanes;
    if (pairs && block + 2 <= args.num_blocks) {
      MultiplyBlocks<Steps, 2>(args, tile);
      block += 2;
    } else {
      MultiplyBlocks<Steps, 1>(args, tile);
      block += 1;
    }
  }
}

// f32 rows as WidenRows<uint16_t>, a vector at a time.
void WidenRowsVector(const void* const* rows, int64_t num_rows, int64_t cols,
                     int64_t k_blocks, void* x) {
  auto* out = static_cast<float*>(x);
  const int64_t padded = k_blocks * kBlockK;
  for (int64_t row = 0; row < num_rows; ++row, out += padded) {
    const auto* in = static_cast<const uint16_t*>(rows[row]);
    int64_t k = 0;
    for (; k + kWidth <= cols; k += kWidth) StoreVec(out + k, Widen(in + k));
    for (; k < cols; ++k) out[k] = ToF32(in[k]);
    for (; k < padded; ++k) out[k] = 0.0f;
  }
}

int64_t PeakVector(int64_t iterations, float* sink) {
  constexpr int kChains = 12;
  const Vec a = LoadVec(sink);
  Vec chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = Splat(static_cast<float>(i));
  for (int64_t i = 0; i < iterations; ++i) {
    PORTOLAN_UNROLL
    for (int c = 0; c < kChains; ++c) chain[c] = MultiplyAdd(a, a, chain[c]);
  }
  for (int i = 0; i < kChains; ++i) StoreVec(sink + i * kWidth, chain[i]);
  return iterations * kChains * kWidth * 2;
}

constexpr KernelTable VectorTable() {
  KernelTable table = ReferenceTable();
  table.f32.row_group = kTileRows;
  table.f32.multiply = MultiplyVector<FloatSteps>;
  table.bf16_few.row_group = kTileRows;
  table.bf16_few.prepare = WidenRowsVector;
  table.bf16_few.multiply = MultiplyVector<FloatSteps>;
  table.bf16_many = table.bf16_few;
  table.peak = PeakVector;
  return table;
}

}  // namespace
}  // namespace portolan
