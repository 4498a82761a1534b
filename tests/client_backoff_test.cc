#include <gtest/gtest.h>

#include "clients/cc/backoff.h"

namespace portolan {
namespace {

constexpr absl::Time kStart = absl::UnixEpoch();

BackoffOptions Options() {
  return {.first = absl::Seconds(1),
          .longest = absl::Seconds(4),
          .give_up_after = absl::Seconds(100)};
}

TEST(BackoffTest, DoublesToTheLongestLessAtMostAHalf) {
  Backoff backoff(Options(), 1);
  for (const int whole : {1, 2, 4, 4, 4}) {
    const auto delay = backoff.Next(kStart, std::nullopt);
    ASSERT_TRUE(delay.has_value());
    EXPECT_GE(*delay, absl::Seconds(whole) / 2);
    EXPECT_LE(*delay, absl::Seconds(whole));
  }
}

TEST(BackoffTest, WaitsAtLeastAsLongAsAsked) {
  Backoff backoff(Options(), 1);
  EXPECT_GE(*backoff.Next(kStart, absl::Seconds(9)), absl::Seconds(9));
}

TEST(BackoffTest, GivesUpWhenTheNextTryWouldComeTooLate) {
  Backoff backoff(Options(), 1);
  ASSERT_TRUE(backoff.Next(kStart, std::nullopt).has_value());
  EXPECT_FALSE(
      backoff.Next(kStart + absl::Seconds(99), absl::Seconds(2)).has_value());
}

TEST(BackoffTest, BeginsAnewAfterSuccess) {
  Backoff backoff(Options(), 1);
  for (int i = 0; i < 5; ++i) (void)backoff.Next(kStart, std::nullopt);
  backoff.Reset();
  const auto delay = backoff.Next(kStart + absl::Seconds(99), std::nullopt);
  ASSERT_TRUE(delay.has_value());
  EXPECT_LE(*delay, absl::Seconds(1));
}

TEST(BackoffTest, EqualSeedsGiveEqualDelaysAndOthersDiffer) {
  Backoff a(Options(), 7), b(Options(), 7), c(Options(), 8);
  const auto first = a.Next(kStart, std::nullopt);
  EXPECT_EQ(first, b.Next(kStart, std::nullopt));
  EXPECT_NE(first, c.Next(kStart, std::nullopt));
}

}  // namespace
}  // namespace portolan
