#include "experts/idle_times.h"

#include <algorithm>
#include <bit>

namespace portolan {
namespace {

constexpr double kRate = 0.05;    // of a new measurement in the mean
constexpr double kOverdue = 0.5;  // of the mean

size_t Bucket(int64_t num_tokens) {
  const auto tokens = static_cast<uint64_t>(std::max<int64_t>(1, num_tokens));
  return std::min<size_t>(23, static_cast<size_t>(std::bit_width(tokens)));
}

}  // namespace

void IdleTimes::OnBeginLayer(int64_t num_tokens, absl::Time now) {
  if (demand_done_ != absl::InfinitePast()) {
    double& mean = mean_s_[Bucket(num_tokens)];
    mean += kRate * (absl::ToDoubleSeconds(now - demand_done_) - mean);
  }
  demand_done_ = now;
}

double IdleTimes::Left(int64_t num_tokens, absl::Time now) const {
  const double mean = mean_s_[Bucket(num_tokens)];
  const double since = absl::ToDoubleSeconds(now - demand_done_);
  return std::max(kOverdue * mean, mean - since);
}

}  // namespace portolan
