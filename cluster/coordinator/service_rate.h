#pragma once

#include <array>
#include <cstdint>

#include "absl/time/time.h"

namespace portolan {

// Amount per second over the last ten seconds, in one-second buckets.
// Thread-compatible.
class ServiceRate {
 public:
  void Add(int64_t amount, absl::Time now);
  // 0 while less than a second was observed.
  double PerSecond(absl::Time now) const;

 private:
  static constexpr int kBuckets = 10;

  std::array<int64_t, kBuckets> amounts_ = {};
  std::array<int64_t, kBuckets> seconds_ = {};  // which second a bucket holds
  int64_t first_second_ = 0;                    // 0: nothing yet
};

}  // namespace portolan
