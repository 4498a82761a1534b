#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace portolan {

// Frequencies theta^(-2i / rotary_dim), i < rotary_dim / 2, rounded to f32 as
// Hugging Face keeps them. Requires an even rotary_dim > 0.
std::vector<float> RopeFrequencies(double theta, int64_t rotary_dim);

// Cosines and sines of rotary position embedding. The angle is the f32 product
// of position and frequency, as in Hugging Face transformers; sine and cosine
// are computed in double by our own series and rounded once, so that every
// processor has the same table. Immutable, thread-safe.
class RopeTable {
 public:
  RopeTable() = default;

  // Positions 0 .. max_position - 1. `frequencies` may be scaled as the model's
  // rope_scaling says; `scale` multiplies cosines and sines (YaRN's attention
  // factor).
  RopeTable(std::span<const float> frequencies, int64_t max_position,
            float scale = 1.0f);

  int64_t rotary_dim() const { return 2 * half_; }
  int64_t max_position() const { return max_position_; }

  // rotary_dim / 2 values.
  const float* Cos(int64_t position) const {
    return values_.data() + position * 2 * half_;
  }
  const float* Sin(int64_t position) const { return Cos(position) + half_; }

 private:
  int64_t half_ = 0;
  int64_t max_position_ = 0;
  std::vector<float> values_;  // [position][cos half, sin half]
};

}  // namespace portolan
