#include "runtime/kernels/rope_table.h"

#include "runtime/base/check.h"
#include "runtime/kernels/math.h"

namespace portolan {

std::vector<float> RopeFrequencies(double theta, int64_t rotary_dim) {
  PORTOLAN_CHECK(rotary_dim > 0 && rotary_dim % 2 == 0 && theta > 0);
  std::vector<float> frequencies(static_cast<size_t>(rotary_dim / 2));
  const double log_theta = LogD(theta);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double exponent =
        2 * static_cast<double>(i) / static_cast<double>(rotary_dim);
    frequencies[i] = static_cast<float>(ExpD(-exponent * log_theta));
  }
  return frequencies;
}

RopeTable::RopeTable(std::span<const float> frequencies, int64_t max_position,
                     float scale)
    : half_(static_cast<int64_t>(frequencies.size())),
      max_position_(max_position) {
  values_.reserve(static_cast<size_t>(2 * half_ * max_position));
  for (int64_t position = 0; position < max_position; ++position) {
    const auto at = static_cast<float>(position);
    for (const float frequency : frequencies) {
      const float angle = at * frequency;
      values_.push_back(static_cast<float>(CosD(angle)) * scale);
    }
    for (const float frequency : frequencies) {
      const float angle = at * frequency;
      values_.push_back(static_cast<float>(SinD(angle)) * scale);
    }
  }
}

}  // namespace portolan
