#pragma once

#include <time.h>

#include "absl/time/time.h"

namespace portolan {

// Time that never goes back, with an arbitrary origin: for intervals only.
inline absl::Time SteadyNow() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return absl::UnixEpoch() + absl::DurationFromTimespec(now);
}

}  // namespace portolan
