#include <gtest/gtest.h>

#include "comm/silence.h"

namespace portolan {
namespace {

constexpr absl::Duration kLimit = absl::Seconds(2);

absl::Duration At(double seconds) { return absl::Seconds(seconds); }

// Looks every 100 ms from just after `from` to `to`; the first silent peer.
std::optional<size_t> LookUntil(SilenceWatch& watch, double from, double to) {
  for (int tick = 1; from + 0.1 * tick <= to; ++tick) {
    if (const auto silent = watch.FindSilent(At(from + 0.1 * tick))) {
      return silent;
    }
  }
  return std::nullopt;
}

TEST(SilenceWatchTest, APeerSilentForLongerThanTheLimitIsFoundOnce) {
  SilenceWatch watch(2, kLimit);
  watch.Heard(0, At(0));
  watch.Heard(1, At(0));
  EXPECT_EQ(LookUntil(watch, 0, 1.5), std::nullopt);
  watch.Heard(0, At(1.5));

  EXPECT_EQ(LookUntil(watch, 1.5, 2.5), 1u);
  EXPECT_EQ(LookUntil(watch, 2.5, 3.0), std::nullopt);
}

TEST(SilenceWatchTest, APeerNeverHeardRaisesNoAlarm) {
  SilenceWatch watch(1, kLimit);

  EXPECT_EQ(LookUntil(watch, 0, 60), std::nullopt);
}

TEST(SilenceWatchTest, APeerThatSaidGoodByeRaisesNoAlarm) {
  SilenceWatch watch(1, kLimit);
  watch.Heard(0, At(0));
  watch.Forget(0);

  EXPECT_EQ(LookUntil(watch, 0, 60), std::nullopt);
}

TEST(SilenceWatchTest, TheTimeForWhichTheWatcherItselfStoodStillDoesNotCount) {
  SilenceWatch watch(1, kLimit);
  watch.Heard(0, At(0));
  ASSERT_EQ(LookUntil(watch, 0, 1), std::nullopt);

  EXPECT_EQ(watch.FindSilent(At(11)), std::nullopt);  // stopped for 10 s
  EXPECT_EQ(LookUntil(watch, 11, 15), 0u);            // and then still silent
}

}  // namespace
}  // namespace portolan
