#include "experts/hints.h"

#include <algorithm>
#include <cmath>

#include "experts/mixer.h"
#include "runtime/base/check.h"

namespace portolan {

void MergeHints(HintMerge merge, std::span<const std::span<const Fp16>> sources,
                std::span<float> merged) {
  std::ranges::fill(merged, 0.0f);
  for (const std::span<const Fp16> source : sources) {
    PORTOLAN_CHECK(source.size() == merged.size());
    for (size_t i = 0; i < merged.size(); ++i) {
      const float score = ToFloat(source[i]);
      if (!(score > 0)) continue;
      merged[i] = merge == HintMerge::kSum ? merged[i] + score
                                           : std::max(merged[i], score);
    }
  }
}

float HintOf(float probability) {
  return -FastLog(1.0f - std::clamp(probability, 0.0f, 0.999f));
}

namespace {
// A power of two: scores keep their precision in f16, whose largest is 65504.
constexpr float kSelectedScale = 4096;
constexpr float kLeastSelected = 1.0f / 2048;
}  // namespace

float HintOf(MapScore score) {
  const float p = std::clamp(score.probability, 0.0f, 1.0f);
  return score.selected ? kSelectedScale * std::max(p, kLeastSelected) : p;
}

MapScore MapScoreOf(float hint) {
  if (hint <= 1) return {.probability = hint};
  return {.probability = hint / kSelectedScale, .selected = true};
}

float UnionProbability(float sum) {
  return 1.0f - FastExp(-std::min(sum, 40.0f));
}

float UseProbability(float expected, int64_t num_tokens) {
  const auto n = static_cast<float>(std::max<int64_t>(1, num_tokens));
  const float share = std::clamp(expected / n, 0.0f, 1.0f);
  if (n == 1) return share;
  return 1.0f - std::pow(1.0f - share, n);
}

}  // namespace portolan
