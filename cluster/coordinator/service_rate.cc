#include "cluster/coordinator/service_rate.h"

#include <algorithm>

namespace portolan {

void ServiceRate::Add(int64_t amount, absl::Time now) {
  const int64_t second = absl::ToUnixSeconds(now);
  if (first_second_ == 0) first_second_ = second;
  const size_t bucket = static_cast<size_t>(second % kBuckets);
  if (seconds_[bucket] != second) {
    seconds_[bucket] = second;
    amounts_[bucket] = 0;
  }
  amounts_[bucket] += amount;
}

double ServiceRate::PerSecond(absl::Time now) const {
  const int64_t second = absl::ToUnixSeconds(now);
  if (first_second_ == 0 || second <= first_second_) return 0;
  // The current second is not over: it counts neither as time nor as amount.
  const int64_t span = std::min<int64_t>(kBuckets - 1, second - first_second_);
  int64_t sum = 0;
  for (size_t i = 0; i < kBuckets; ++i) {
    const int64_t age = second - seconds_[i];
    if (age >= 1 && age <= span) sum += amounts_[i];
  }
  return static_cast<double>(sum) / static_cast<double>(span);
}

}  // namespace portolan
