#pragma once

#include "runtime/kernels/gemm_vector.h"

// The matrix product in AMX tiles, up to 32 rows x 32 outputs at a time.
// Needs the tile intrinsics of <immintrin.h>, or a test's emulation of them.
// Internal to the path_*.cc files.

namespace portolan {
namespace {

constexpr int64_t kAmxRows = 16;

// Below this many rows the vector kernel streams weights faster.
constexpr int64_t kAmxManyRows = 4;

// Tiles 0-3: sums; 4, 5: rows of x; 6, 7: weights. All are 16 x 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

void EnterTiles() {
  TileConfig config;
  // gcc 12 believes that the intrinsic reads 8 bytes and drops other stores.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

void LeaveTiles() { _tile_release(); }

// [row tile][k block][16 rows][32], zeros beyond the rows and columns.
void PackRows(const void* const* rows, int64_t num_rows, int64_t cols,
              int64_t k_blocks, void* x) {
  auto* out = static_cast<uint16_t*>(x);
  const int64_t padded_rows = (num_rows + kAmxRows - 1) / kAmxRows * kAmxRows;
  for (int64_t row = 0; row < padded_rows; ++row) {
    uint16_t* to =
        out + (row / kAmxRows * k_blocks * kAmxRows + row % kAmxRows) * kBlockK;
    const auto* in =
        row < num_rows ? static_cast<const uint16_t*>(rows[row]) : nullptr;
    for (int64_t kb = 0; kb < k_blocks; ++kb, to += kTileSize) {
      const int64_t left = in == nullptr ? 0 : cols - kb * kBlockK;
      const int64_t n = left < kBlockK ? left : kBlockK;
      if (n == kBlockK) {
        __builtin_memcpy(to, in + kb * kBlockK, kBlockK * sizeof(uint16_t));
        continue;
      }
      for (int64_t k = 0; k < kBlockK; ++k) {
        to[k] = k < n ? in[kb * kBlockK + k] : uint16_t{0};
      }
    }
  }
}

struct AmxTile {
  const uint16_t* x0;  // row tile, and the next one if kRowTiles == 2
  const uint16_t* x1;
  const uint16_t* w0;  // output block, and the next one if kBlocks == 2
  const uint16_t* w1;
  int64_t k_blocks;
  float* c;
  int64_t c_stride;
  bool accumulate;
  const uint16_t* w_last;
};

inline void PrefetchTile(const uint16_t* w, const uint16_t* w_last) {
  const uint16_t* next = w < w_last ? w : w_last;
  for (int i = 0; i < kTileSize; i += kLanes * 2) __builtin_prefetch(next + i);
}

template <int kRowTiles, int kBlocks>
inline void LoadSums(const AmxTile& t, int64_t row_bytes) {
  if (!t.accumulate) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    return;
  }
  _tile_loadd(0, t.c, row_bytes);
  if (kBlocks == 2) _tile_loadd(1, t.c + kLanes, row_bytes);
  if (kRowTiles == 2) {
    _tile_loadd(2, t.c + kAmxRows * t.c_stride, row_bytes);
    if (kBlocks == 2) {
      _tile_loadd(3, t.c + kAmxRows * t.c_stride + kLanes, row_bytes);
    }
  }
}

template <int kRowTiles, int kBlocks>
inline void StoreSums(const AmxTile& t, int64_t row_bytes) {
  _tile_stored(0, t.c, row_bytes);
  if (kBlocks == 2) _tile_stored(1, t.c + kLanes, row_bytes);
  if (kRowTiles == 2) {
    _tile_stored(2, t.c + kAmxRows * t.c_stride, row_bytes);
    if (kBlocks == 2) {
      _tile_stored(3, t.c + kAmxRows * t.c_stride + kLanes, row_bytes);
    }
  }
}

// `ahead`: elements from the weights at work to those to prefetch; 0: none.
template <int kRowTiles, int kBlocks>
void MultiplyTiles(const AmxTile& t, int64_t ahead) {
  const int64_t row_bytes = t.c_stride * 4;
  LoadSums<kRowTiles, kBlocks>(t, row_bytes);
  for (int64_t kb = 0; kb < t.k_blocks; ++kb) {
    const int64_t at = kb * kTileSize;
    if (ahead != 0) {
      PrefetchTile(t.w0 + at + ahead, t.w_last);
      if (kBlocks == 2) PrefetchTile(t.w1 + at + ahead, t.w_last);
    }
    _tile_loadd(4, t.x0 + at, 64);
    _tile_loadd(6, t.w0 + at, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (kBlocks == 2) {
      _tile_loadd(7, t.w1 + at, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kRowTiles == 2) {
      _tile_loadd(5, t.x1 + at, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (kBlocks == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  StoreSums<kRowTiles, kBlocks>(t, row_bytes);
}

template <int kBlocks>
void MultiplyRowTiles(const MultiplyArgs& args, AmxTile tile) {
  const int64_t row_tile = args.x_k_blocks * kTileSize;
  // The first rows fetch the weights at work, a little ahead of the loads; the
  // second ones those of the next blocks, while the present ones are cached.
  int64_t ahead = args.w_end == nullptr ? 0 : kAhead;
  for (int64_t row = 0; row < args.rows; row += 2 * kAmxRows) {
    if (args.rows - row > kAmxRows) {
      tile.x1 = tile.x0 + row_tile;
      MultiplyTiles<2, kBlocks>(tile, ahead);
    } else {
      MultiplyTiles<1, kBlocks>(tile, ahead);
    }
    ahead =
        row == 0 && args.w_end != nullptr ? kBlocks * args.w_block_stride : 0;
    tile.x0 += 2 * row_tile;
    tile.c += 2 * kAmxRows * tile.c_stride;
  }
}

// Writes whole row tiles of c.
void MultiplyAmx(const MultiplyArgs& args) {
  AmxTile tile{};
  tile.x0 =
      static_cast<const uint16_t*>(args.x) + args.first_k_block * kTileSize;
  tile.k_blocks = args.k_blocks;
  tile.c_stride = args.c_stride;
  tile.accumulate = args.accumulate;
  tile.w_last = args.w_end == nullptr
                    ? nullptr
                    : static_cast<const uint16_t*>(args.w_end) - kTileSize;
  for (int64_t block = 0; block < args.num_blocks; block += 2) {
    tile.w0 =
        static_cast<const uint16_t*>(args.w) + block * args.w_block_stride;
    tile.w1 = tile.w0 + args.w_block_stride;
    tile.c = args.c + block * kLanes;
    if (block + 1 < args.num_blocks) {
      MultiplyRowTiles<2>(args, tile);
    } else {
      MultiplyRowTiles<1>(args, tile);
    }
  }
}

int64_t PeakAmx(int64_t iterations, float* sink) {
  EnterTiles();
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sink, 64);
  LeaveTiles();
  return iterations * 4 * kAmxRows * kLanes * kBlockK * 2;
}

constexpr KernelTable TileTable() {
  KernelTable table = VectorTable();
  table.many_rows = kAmxManyRows;
  table.peak = PeakAmx;
  table.bf16_many.x_element_bytes = 2;
  table.bf16_many.row_group = 2 * kAmxRows;
  table.bf16_many.enter = EnterTiles;
  table.bf16_many.leave = LeaveTiles;
  table.bf16_many.prepare = PackRows;
  table.bf16_many.multiply = MultiplyAmx;
  return table;
}

}  // namespace
}  // namespace portolan
