#pragma once

#include "absl/time/time.h"

namespace portolan {

// The coordinator's time: the wall clock at its start, then steady. It never
// falls, also over restarts: a wall clock that was set back below `not_before`,
// the latest time on disk, is not believed. So requests keep their order, and
// no deadline fires early or waits for the clock to catch up.
//
// Thread-safe.
class ServiceClock {
 public:
  ServiceClock(absl::Time wall, absl::Time not_before);

  absl::Time Now() const;

 private:
  const absl::Time start_;
  const absl::Duration steady_start_;
};

}  // namespace portolan
