#pragma once

#include <array>
#include <cstdint>

#include "absl/time/time.h"

namespace portolan {

// How long the link has nothing to do between the demand of one layer and that
// of the next: measured, smoothed, by the size of the step. Thread-compatible.
class IdleTimes {
 public:
  // The gate of a layer has chosen: demand begins.
  void OnBeginLayer(int64_t num_tokens, absl::Time now);
  // A read that compute waited for has come.
  void OnDemandLoaded(absl::Time now) { demand_done_ = now; }

  // Seconds until the next demand is to be expected. 0 before anything is
  // measured; never below a part of the mean, for what is overdue may be so for
  // a while.
  double Left(int64_t num_tokens, absl::Time now) const;

 private:
  absl::Time demand_done_ = absl::InfinitePast();
  std::array<double, 24> mean_s_ = {};  // by the bits of num_tokens
};

}  // namespace portolan
