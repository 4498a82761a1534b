#include <gtest/gtest.h>

#include "cluster/coordinator/service_clock.h"

namespace portolan {
namespace {

TEST(ServiceClockTest, NeverFallsBelowWhatWasOnRecord) {
  const absl::Time recorded = absl::FromUnixSeconds(1'700'000'000);

  const ServiceClock set_back(recorded - absl::Hours(1), recorded);
  const ServiceClock right(recorded + absl::Hours(1), recorded);

  EXPECT_GE(set_back.Now(), recorded);
  EXPECT_LT(set_back.Now(), recorded + absl::Minutes(30));
  EXPECT_GE(right.Now(), recorded + absl::Hours(1));
}

TEST(ServiceClockTest, GoesOnSteadily) {
  const ServiceClock clock(absl::UnixEpoch(), absl::UnixEpoch());
  absl::Time last = clock.Now();
  for (int i = 0; i < 1000; ++i) {
    const absl::Time now = clock.Now();
    EXPECT_GE(now, last);
    last = now;
  }
}

}  // namespace
}  // namespace portolan
