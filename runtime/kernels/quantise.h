#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/base/bf16.h"
#include "runtime/kernels/weight_format.h"

namespace portolan {

// What quantising cost, over all weights that were added.
struct QuantisationError {
  double largest_error = 0;   // of |weight - quantised|
  double largest_weight = 0;  // of |weight|
  double error_squares = 0;   // sums
  double weight_squares = 0;

  void Add(const QuantisationError& other);

  // largest_error / largest_weight; 0 without weights.
  double MaxRelative() const;
  // Root of the mean square of the error over that of the weights.
  double RmsRelative() const;
};

// Quantises bf16 tiles (packed_matrix.h) one by one: `to` receives
// num_tiles * TileBytes(format) bytes. A tile of kInt8 is [32 inputs]
// [16 outputs] bytes, then 16 scales; one of kInt4 is [4][16 outputs] words of
// eight nibbles, then 16 scales: nibble n of word w is input 4 n + w, as q + 8,
// but for n = 7 as q in two's complement (so that a word with the others masked
// out is, as an integer, a multiple of what it stands for).
//
// For each group the scale that gives the least sum of squared errors is
// searched among those that fit its largest weight. False if a weight is not
// finite or too large for the format (2^46 and more for kInt8, 1680 for
// kInt4). Requires a quantised format. Thread-safe.
bool QuantiseTiles(WeightFormat format, const Bf16* tiles, int64_t num_tiles,
                   std::byte* to, QuantisationError& error);

// The bf16 tiles that quantised ones stand for, exactly. Thread-safe.
void DequantiseTiles(WeightFormat format, const std::byte* tiles,
                     int64_t num_tiles, Bf16* to);

}  // namespace portolan
