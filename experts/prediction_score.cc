#include "experts/prediction_score.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "experts/hints.h"

namespace portolan {

void PredictionScore::Count(std::span<const float> expected,
                            std::span<const int32_t> tokens,
                            int64_t num_tokens) {
  double size = 0;
  for (const float count : expected) size += UseProbability(count, num_tokens);
  order_.resize(expected.size());
  std::iota(order_.begin(), order_.end(), 0);
  const auto foretold =
      std::clamp<int64_t>(std::llround(size), 0, std::ssize(order_));
  std::partial_sort(order_.begin(), order_.begin() + foretold, order_.end(),
                    [&](int32_t a, int32_t b) {
                      const float left = expected[static_cast<size_t>(a)];
                      const float right = expected[static_cast<size_t>(b)];
                      return left > right || (left == right && a < b);
                    });
  metrics_.predicted += foretold;
  metrics_.needed +=
      std::ranges::count_if(tokens, [](int32_t n) { return n > 0; });
  metrics_.correct += std::count_if(
      order_.begin(), order_.begin() + foretold,
      [&](int32_t e) { return tokens[static_cast<size_t>(e)] > 0; });
}

Histogram MatchScoreHistogram() {
  return Histogram({0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9,
                    0.925, 0.95, 0.975, 0.99});
}

}  // namespace portolan
