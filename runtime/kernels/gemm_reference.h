#pragma once

#include "runtime/kernels/kernel_table.h"
#include "runtime/kernels/lanes.h"

// The matrix product as contracts of numerics state it, for x in f32 and
// weights in bf16 or f32. Internal to the path_*.cc files.

namespace portolan {
namespace {

constexpr int64_t kBlockK = 32;
constexpr int64_t kTileSize = 512;

inline float ToF32(float x) { return x; }
inline float ToF32(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// f32 rows [num_rows, k_blocks * 32], zeros beyond `cols`.
template <typename T>
void WidenRows(const void* const* rows, int64_t num_rows, int64_t cols,
               int64_t k_blocks, void* x) {
  auto* out = static_cast<float*>(x);
  const int64_t padded = k_blocks * kBlockK;
  for (int64_t row = 0; row < num_rows; ++row, out += padded) {
    const T* in = static_cast<const T*>(rows[row]);
    for (int64_t k = 0; k < cols; ++k) out[k] = ToF32(in[k]);
    for (int64_t k = cols; k < padded; ++k) out[k] = 0.0f;
  }
}

// c[0..15] += one block of K: a chain over the even and one over the odd
// products, both from 0, then their sum.
template <typename Weight>
inline void MultiplyBlock(const float* x, const Weight* tile, float* c) {
  float even[kLanes] = {};
  float odd[kLanes] = {};
  for (int64_t pair = 0; pair < kBlockK / 2; ++pair, tile += 2 * kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      even[i] = __builtin_fmaf(x[2 * pair], ToF32(tile[2 * i]), even[i]);
      odd[i] = __builtin_fmaf(x[2 * pair + 1], ToF32(tile[2 * i + 1]), odd[i]);
    }
  }
  for (int64_t i = 0; i < kLanes; ++i) c[i] += even[i] + odd[i];
}

template <typename Weight>
void MultiplyReference(const MultiplyArgs& args) {
  const auto* x = static_cast<const float*>(args.x);
  const auto* w = static_cast<const Weight*>(args.w);
  for (int64_t row = 0; row < args.rows; ++row) {
    const float* x_row =
        x + (row * args.x_k_blocks + args.first_k_block) * kBlockK;
    for (int64_t block = 0; block < args.num_blocks; ++block) {
      float* c = args.c + row * args.c_stride + block * kLanes;
      for (int64_t i = 0; i < kLanes && !args.accumulate; ++i) c[i] = 0.0f;
      for (int64_t kb = 0; kb < args.k_blocks; ++kb) {
        MultiplyBlock(x_row + kb * kBlockK,
                      w + block * args.w_block_stride + kb * kTileSize, c);
      }
    }
  }
}

int64_t PeakReference(int64_t iterations, float* sink) {
  const float tile[kBlockK * kLanes] = {};
  float x[kBlockK];
  for (int64_t i = 0; i < kBlockK; ++i) x[i] = sink[i];
  for (int64_t i = 0; i < iterations; ++i) MultiplyBlock(x, tile, sink);
  return iterations * 2 * kBlockK * kLanes;
}

// A KernelTable whose matrix products are the reference.
constexpr KernelTable ReferenceTable() {
  KernelTable table{};
  table.f32_weights.prepare = WidenRows<float>;
  table.f32_weights.multiply = MultiplyReference<float>;
  table.f32.prepare = WidenRows<float>;
  table.f32.multiply = MultiplyReference<uint16_t>;
  table.bf16_few.prepare = WidenRows<uint16_t>;
  table.bf16_few.multiply = MultiplyReference<uint16_t>;
  table.bf16_many = table.bf16_few;
  table.peak = PeakReference;
  return table;
}

}  // namespace
}  // namespace portolan
