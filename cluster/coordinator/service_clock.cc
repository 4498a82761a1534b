#include "cluster/coordinator/service_clock.h"

#include <algorithm>
#include <chrono>

namespace portolan {
namespace {

absl::Duration Steady() {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace

ServiceClock::ServiceClock(absl::Time wall, absl::Time not_before)
    : start_(std::max(wall, not_before)), steady_start_(Steady()) {}

absl::Time ServiceClock::Now() const {
  return start_ + (Steady() - steady_start_);
}

}  // namespace portolan
