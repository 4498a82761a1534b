#include <gtest/gtest.h>

#include "cluster/coordinator/start_times.h"

namespace portolan {
namespace {

class StartTimesTest : public ::testing::Test {
 protected:
  StartTimes times_;
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
};

TEST_F(StartTimesTest, ExpectsNothingBeforeAnythingWasSeen) {
  EXPECT_EQ(times_.Expected(1000, now_), absl::ZeroDuration());
}

TEST_F(StartTimesTest, ExpectsTheSlowestOfLate) {
  times_.Observe(8, absl::Milliseconds(10), now_);
  times_.Observe(8, absl::Milliseconds(40), now_);
  times_.Observe(8, absl::Milliseconds(20), now_);

  EXPECT_EQ(times_.Expected(8, now_), absl::Milliseconds(40));
}

TEST_F(StartTimesTest, ForgetsAPauseThoughNothingElseIsSeen) {
  times_.Observe(8, absl::Seconds(4), now_);

  EXPECT_EQ(times_.Expected(8, now_ + StartTimes::kHalfLife), absl::Seconds(2));
  EXPECT_EQ(times_.Expected(8, now_ + 2 * StartTimes::kHalfLife),
            absl::Seconds(1));
  EXPECT_LT(times_.Expected(8, now_ + absl::Hours(1)), absl::Microseconds(1));
}

TEST_F(StartTimesTest, AFasterOneCountsOnceTheSlowerOneHasFaded) {
  times_.Observe(8, absl::Milliseconds(40), now_);
  now_ += 2 * StartTimes::kHalfLife;
  times_.Observe(8, absl::Milliseconds(30), now_);

  EXPECT_EQ(times_.Expected(8, now_), absl::Milliseconds(30));
}

TEST_F(StartTimesTest, ALongPromptSaysNothingOfShorterOnes) {
  times_.Observe(100, absl::Seconds(3), now_);
  times_.Observe(8, absl::Milliseconds(20), now_);

  EXPECT_EQ(times_.Expected(9, now_), absl::Milliseconds(20));
  EXPECT_EQ(times_.Expected(127, now_), absl::Seconds(3));
  EXPECT_EQ(times_.Expected(1 << 20, now_), absl::Seconds(3));
}

TEST_F(StartTimesTest, ALongPromptIsNotExpectedSoonerThanAShortOne) {
  times_.Observe(100, absl::Milliseconds(20), now_);
  times_.Observe(8, absl::Milliseconds(50), now_);

  EXPECT_EQ(times_.Expected(100, now_), absl::Milliseconds(50));
}

}  // namespace
}  // namespace portolan
