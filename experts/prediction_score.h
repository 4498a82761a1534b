#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "experts/metrics.h"
#include "runtime/base/histogram.h"

namespace portolan {

// Counts how well one source foretells at one distance. Thread-compatible.
class PredictionScore {
 public:
  PredictionScore(std::string_view source, int32_t distance) {
    metrics_.source = source;
    metrics_.distance = distance;
  }

  // expected: tokens that each expert of a layer was expected to get
  // ([num_experts]); tokens: those it got, of num_tokens.
  void Count(std::span<const float> expected, std::span<const int32_t> tokens,
             int64_t num_tokens);

  const PredictionMetrics& metrics() const { return metrics_; }

 private:
  PredictionMetrics metrics_;
  std::vector<int32_t> order_;
};

// Empty, for Predictor::match_scores(): finest near 1, where the matches of use
// lie.
Histogram MatchScoreHistogram();

}  // namespace portolan
