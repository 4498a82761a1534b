#include "experts/mixer.h"

#include <algorithm>
#include <bit>

#include "runtime/base/check.h"

namespace portolan {

float FastLog(float x) {
  const auto bits = std::bit_cast<int32_t>(x);
  const auto exponent = static_cast<float>((bits >> 23) - 127);
  const float m = std::bit_cast<float>((bits & 0x7fffff) | 0x3f800000);
  // ln(m) on [1, 2): atanh series of (m - 1) / (m + 1).
  const float t = (m - 1.0f) / (m + 1.0f);
  const float t2 = t * t;
  const float series = 1.0f + t2 * (1.0f / 3 + t2 * (0.2f + t2 * (1.0f / 7)));
  return 0.69314718f * exponent + 2.0f * t * series;
}

float FastExp(float x) {
  const float scaled = x * 1.44269504f;
  const float floor =
      static_cast<float>(static_cast<int32_t>(scaled + 256.0f)) - 256.0f;
  const float f = (scaled - floor) * 0.69314718f;
  const float series =
      1.0f +
      f * (1.0f + f * (0.5f + f * (1.0f / 6 + f * (1.0f / 24 + f / 120))));
  const auto exponent = static_cast<int32_t>(floor) + 127;
  return series * std::bit_cast<float>(exponent << 23);
}

float Stretch(float probability) {
  const float p = std::clamp(probability, 0.001f, 0.999f);
  return FastLog(p / (1.0f - p));
}

float Squash(float logit) {
  return 1.0f / (1.0f + FastExp(-std::clamp(logit, -40.0f, 40.0f)));
}

void Mixer::Mix(MatrixView<const float> inputs,
                std::span<float> probabilities) const {
  PORTOLAN_CHECK(inputs.rows() == static_cast<int64_t>(num_inputs_));
  std::ranges::fill(probabilities, 0.0f);
  for (size_t i = 0; i < num_inputs_; ++i) {
    const std::span<const float> input = inputs.Row(static_cast<int64_t>(i));
    const float weight = weights_[i];
    for (size_t e = 0; e < probabilities.size(); ++e) {
      probabilities[e] += weight * input[e];
    }
  }
  for (float& p : probabilities) p = Squash(p);
}

void Mixer::Learn(MatrixView<const float> inputs,
                  std::span<const float> probabilities,
                  std::span<const float> used, float rate) {
  for (size_t i = 0; i < num_inputs_; ++i) {
    const std::span<const float> input = inputs.Row(static_cast<int64_t>(i));
    float gradient = 0;
    for (size_t e = 0; e < probabilities.size(); ++e) {
      gradient += (used[e] - probabilities[e]) * input[e];
    }
    weights_[i] += rate * gradient;
  }
}

}  // namespace portolan
