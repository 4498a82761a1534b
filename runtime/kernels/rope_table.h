#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/base/aligned_buffer.h"

namespace portolan {

// Cosines and sines of rotary position embedding. The angle is the f32 product
// of position and frequency, as in Hugging Face transformers; sine and cosine
// are computed in double by our own series and rounded once, so that every
// processor has the same table.
//
// A position is computed when it is first reached: a long context costs neither
// time nor memory before. Thread-compatible.
class RopeTable {
 public:
  // Room for positions 0 .. capacity - 1. `frequencies`: radians a position of
  // each pair, scaled as the model's rope_scaling says.
  // Errors: kResourceExhausted.
  static absl::StatusOr<RopeTable> Create(std::span<const double> frequencies,
                                          int64_t capacity);

  // Of a full table.
  static int64_t Bytes(int64_t rotary_dim, int64_t capacity);

  // Computes what is missing of positions 0 .. end - 1. Requires end <=
  // capacity.
  void Reach(int64_t end);

  int64_t rotary_dim() const { return 2 * half(); }
  int64_t num_positions() const { return num_positions_; }  // computed
  int64_t bytes() const { return static_cast<int64_t>(values_.size()); }

  // rotary_dim / 2 values. Requires position < num_positions().
  const float* Cos(int64_t position) const {
    return values_.As<const float>().data() + position * rotary_dim();
  }
  const float* Sin(int64_t position) const { return Cos(position) + half(); }

 private:
  RopeTable(std::vector<float> frequencies, AlignedBuffer values)
      : frequencies_(std::move(frequencies)), values_(std::move(values)) {}

  int64_t half() const { return static_cast<int64_t>(frequencies_.size()); }

  std::vector<float> frequencies_;
  AlignedBuffer values_;  // [capacity][cos half, sin half]
  int64_t num_positions_ = 0;
};

}  // namespace portolan
