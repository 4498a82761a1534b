#pragma once

#include <cstdint>
#include <cstring>

// Stand-ins for the AMX intrinsics that gemm_amx.h uses, after the operation
// sections of Intel's instruction set reference. Tiles are per thread, as the
// registers are. Include before gemm_amx.h, in one file only.

namespace portolan {
namespace {

struct EmulatedTile {
  alignas(64) uint8_t bytes[16][64];
};

struct EmulatedTiles {
  bool configured = false;
  uint16_t row_bytes[8];
  uint8_t rows[8];
  EmulatedTile tile[8];
};

thread_local EmulatedTiles emulated;

// TDPBF16PS flushes denormals, whatever MXCSR says.
inline float Flush(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
  std::memcpy(&x, &bits, sizeof(bits));
  return x;
}

inline float Half(const uint8_t* bytes) {
  uint16_t half;
  std::memcpy(&half, bytes, sizeof(half));
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return Flush(x);
}

inline float Fused(float a, float b, float c) {
  return Flush(__builtin_fmaf(a, b, c));
}

// An instruction without a configuration is an invalid opcode.
inline EmulatedTile& Tile(int i) {
  if (!emulated.configured) __builtin_trap();
  return emulated.tile[i];
}

inline void _tile_loadconfig(const void* config) {
  const auto* bytes = static_cast<const uint8_t*>(config);
  if (bytes[0] != 1 || bytes[1] != 0) __builtin_trap();
  std::memcpy(emulated.row_bytes, bytes + 16, sizeof(emulated.row_bytes));
  std::memcpy(emulated.rows, bytes + 48, sizeof(emulated.rows));
  std::memset(emulated.tile, 0, sizeof(emulated.tile));
  emulated.configured = true;
}

inline void _tile_release() { emulated.configured = false; }

inline void _tile_zero(int i) { Tile(i) = EmulatedTile{}; }

inline void _tile_loadd(int i, const void* base, int64_t stride) {
  Tile(i) = EmulatedTile{};
  for (int row = 0; row < emulated.rows[i]; ++row) {
    std::memcpy(Tile(i).bytes[row],
                static_cast<const uint8_t*>(base) + row * stride,
                emulated.row_bytes[i]);
  }
}

inline void _tile_stored(int i, void* base, int64_t stride) {
  for (int row = 0; row < emulated.rows[i]; ++row) {
    std::memcpy(static_cast<uint8_t*>(base) + row * stride, Tile(i).bytes[row],
                emulated.row_bytes[i]);
  }
}

inline void _tile_dpbf16ps(int c, int a, int b) {
  for (int m = 0; m < emulated.rows[c]; ++m) {
    for (int n = 0; n < emulated.row_bytes[c] / 4; ++n) {
      float even = 0;
      float odd = 0;
      for (int k = 0; k < emulated.row_bytes[a] / 4; ++k) {
        const uint8_t* x = Tile(a).bytes[m] + 4 * k;
        const uint8_t* w = Tile(b).bytes[k] + 4 * n;
        even = Fused(Half(x), Half(w), even);
        odd = Fused(Half(x + 2), Half(w + 2), odd);
      }
      float sum;
      std::memcpy(&sum, Tile(c).bytes[m] + 4 * n, sizeof(sum));
      sum = Flush(Flush(sum) + Flush(even + odd));
      std::memcpy(Tile(c).bytes[m] + 4 * n, &sum, sizeof(sum));
    }
  }
}

}  // namespace
}  // namespace portolan
