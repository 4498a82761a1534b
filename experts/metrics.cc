#include "experts/metrics.h"

#include <algorithm>

namespace portolan {
namespace {

double Ratio(int64_t part, int64_t whole) {
  return whole == 0 ? 0.0
                    : static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

double ExpertMetrics::HitRate() const { return Ratio(hits, accesses()); }

double ExpertMetrics::StallPerToken() const {
  return tokens == 0
             ? 0.0
             : absl::ToDoubleSeconds(stall) / static_cast<double>(tokens);
}

void ExpertMetrics::Merge(const ExpertMetrics& other) {
  steps = std::max(steps, other.steps);
  tokens = std::max(tokens, other.tokens);
  hits += other.hits;
  late += other.late;
  misses += other.misses;
  stall += other.stall;
  demand_bytes += other.demand_bytes;
  prefetch_used_bytes += other.prefetch_used_bytes;
  prefetch_wasted_bytes += other.prefetch_wasted_bytes;
  prefetch_resident_bytes += other.prefetch_resident_bytes;
  prefetches_used += other.prefetches_used;
  prefetches_late += other.prefetches_late;
  prefetches_wasted += other.prefetches_wasted;
}

double PredictionMetrics::Precision() const {
  return Ratio(correct, predicted);
}

double PredictionMetrics::Recall() const { return Ratio(correct, needed); }

}  // namespace portolan
