#include "experts/dot_rows.h"

#include <cmath>
#include <numeric>

namespace portolan {
namespace {

// One body, compiled for two instruction sets. Without FMA contraction and in
// fixed lanes both give the same bits.
inline __attribute__((always_inline)) void DotRowsBody(
    const float* rows, size_t stride, size_t num_rows, const float* query,
    size_t cols, float* out) {
  for (size_t r = 0; r < num_rows; ++r) {
    const float* row = rows + r * stride;
    float lanes[kRowLanes] = {};
    for (size_t c = 0; c < cols; c += kRowLanes) {
      for (size_t lane = 0; lane < kRowLanes; ++lane) {
        lanes[lane] += row[c + lane] * query[c + lane];
      }
    }
    for (size_t half = kRowLanes / 2; half > 0; half /= 2) {
      for (size_t lane = 0; lane < half; ++lane)
        lanes[lane] += lanes[lane + half];
    }
    out[r] += lanes[0];
  }
}

void DotRowsPlain(const float* rows, size_t stride, size_t num_rows,
                  const float* query, size_t cols, float* out) {
  DotRowsBody(rows, stride, num_rows, query, cols, out);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void DotRowsAvx2(const float* rows,
                                                 size_t stride, size_t num_rows,
                                                 const float* query,
                                                 size_t cols, float* out) {
  DotRowsBody(rows, stride, num_rows, query, cols, out);
}

const bool kHasAvx2 = __builtin_cpu_supports("avx2") != 0;
#endif

}  // namespace

void DotRows(const float* rows, size_t stride, size_t num_rows,
             std::span<const float> query, float* out) {
#if defined(__x86_64__)
  if (kHasAvx2) {
    DotRowsAvx2(rows, stride, num_rows, query.data(), query.size(), out);
    return;
  }
#endif
  DotRowsPlain(rows, stride, num_rows, query.data(), query.size(), out);
}

void DotSparseRows(const uint8_t* values, const uint16_t* index,
                   const float* scale, size_t top_m, size_t num_rows,
                   std::span<const float> query, float* out) {
  for (size_t r = 0; r < num_rows; ++r) {
    float sum = 0;
    for (size_t i = 0; i < top_m; ++i) {
      sum += static_cast<float>(values[r * top_m + i]) *
             query[index[r * top_m + i]];
    }
    out[r] += scale[r] * sum;
  }
}

float SquaredNorm(std::span<const float> values) {
  return std::inner_product(values.begin(), values.end(), values.begin(), 0.0f);
}

float InverseNorm(float square) {
  return square > 0 ? 1.0f / std::sqrt(square) : 0.0f;
}

}  // namespace portolan
