#include "experts/hints.h"

#include <algorithm>

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

}  // namespace portolan
