#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace portolan {

// Rows that DotRows() reads are padded with zeros to this many floats.
inline constexpr size_t kRowLanes = 16;

constexpr size_t PaddedRow(size_t cols) {
  return (cols + kRowLanes - 1) / kRowLanes * kRowLanes;
}

// out[r] += row(r) . query for num_rows rows that lie `stride` floats apart,
// f32 in 16 lanes and a fixed tree: the same bits with and without AVX2.
// query: a multiple of kRowLanes long.
void DotRows(const float* rows, size_t stride, size_t num_rows,
             std::span<const float> query, float* out);

// The same over rows of quantised values: out[r] += scale[r] * sum of
// values[r * top_m + i] * query[index[r * top_m + i]].
void DotSparseRows(const uint8_t* values, const uint16_t* index,
                   const float* scale, size_t top_m, size_t num_rows,
                   std::span<const float> query, float* out);

// |values|^2, and 1 / |values| of that; the inverse of 0 is 0.
float SquaredNorm(std::span<const float> values);
float InverseNorm(float square);

}  // namespace portolan
