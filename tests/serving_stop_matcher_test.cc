#include <gtest/gtest.h>

#include "runtime/serving/stop_matcher.h"

namespace portolan {
namespace {

TEST(StopMatcherTest, LetsTextThroughAtOnceWhereNoStopStringBegins) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.Push("hello "), "hello ");
  EXPECT_EQ(matcher.Push("world"), "world");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopMatcherTest, CutsBeforeAStopStringThatComesInPieces) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.Push("one E"), "one ");
  EXPECT_EQ(matcher.Push("N"), "");
  EXPECT_EQ(matcher.Push("D two"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.Push("more"), "");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcherTest, ReleasesWhatTurnsOutHarmless) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.Push("EN"), "");
  EXPECT_EQ(matcher.Push("EMY"), "ENEMY");
  EXPECT_EQ(matcher.Push(" EN"), " ");
  EXPECT_EQ(matcher.Finish(), "EN");
}

TEST(StopMatcherTest, TheEarliestOfSeveralStopStringsWins) {
  StopMatcher matcher({"cd", "bc", ""});
  EXPECT_EQ(matcher.Push("abcde"), "a");
  EXPECT_TRUE(matcher.stopped());
}

TEST(StopMatcherTest, HoldsBackTheLongestBeginning) {
  StopMatcher matcher({"aab"});
  EXPECT_EQ(matcher.Push("aaa"), "a");
  EXPECT_EQ(matcher.Push("b"), "");
  EXPECT_TRUE(matcher.stopped());
}

}  // namespace
}  // namespace portolan
