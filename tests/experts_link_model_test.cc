#include <gtest/gtest.h>

#include <vector>

#include "experts/link_model.h"

namespace portolan {
namespace {

constexpr auto kDemand = ReadClass::kDemand;
constexpr auto kSpeculative = ReadClass::kSpeculative;

absl::Time At(double microseconds) {
  return absl::UnixEpoch() + absl::Microseconds(microseconds);
}

// 1 byte per microsecond, 50 us.
LinkModel SlowLink() {
  return LinkModel(
      {.bytes_per_second = 1e6, .latency = absl::Microseconds(50)});
}

TEST(LinkSpecTest, ReadsBandwidthAndLatency) {
  const auto spec = ParseLinkSpec("1GB/s,50us");
  ASSERT_TRUE(spec.ok());
  EXPECT_EQ(spec->bytes_per_second, 1e9);
  EXPECT_EQ(spec->latency, absl::Microseconds(50));
  EXPECT_EQ(ParseLinkSpec("200MB/s")->latency, absl::ZeroDuration());
}

TEST(LinkSpecTest, RefusesWhatIsNoLink) {
  for (const char* text : {"", "1GB", "fast", "0/s", "1GB/s,", "1GB/s,50",
                           "1GB/s,-1us", "1GB/s,1us,2us", "-1GB/s"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseLinkSpec(text).status())) << text;
  }
  EXPECT_EQ(ParseLinkSpec("", "--link").status().message().substr(0, 7),
            "--link:");
}

TEST(LinkModelTest, ALoadTakesLatencyAndThenItsBytes) {
  LinkModel link = SlowLink();
  link.Submit(1, 100, /*first_of_load=*/true, kDemand, At(0));

  EXPECT_FALSE(link.PopArrived(At(149)));
  EXPECT_EQ(link.NextArrival(), At(150));
  EXPECT_EQ(link.PopArrived(At(150)), 1u);
  EXPECT_FALSE(link.PopArrived(At(1000)));
  EXPECT_EQ(link.NextArrival(), absl::InfiniteFuture());
}

TEST(LinkModelTest, ChunksOfALoadPayTheLatencyOnce) {
  LinkModel link = SlowLink();
  link.Submit(1, 100, true, kDemand, At(0));
  link.Submit(2, 100, false, kDemand, At(0));

  EXPECT_EQ(link.PopArrived(At(250)), 1u);
  EXPECT_EQ(link.PopArrived(At(250)), 2u);
}

TEST(LinkModelTest, ALateLookDoesNotDelayWhatFollows) {
  LinkModel link = SlowLink();
  link.Submit(1, 100, true, kDemand, At(0));
  link.Submit(2, 100, true, kDemand, At(0));
  EXPECT_EQ(link.PopArrived(At(290)), 1u);

  EXPECT_FALSE(link.PopArrived(At(299)));
  EXPECT_EQ(link.PopArrived(At(300)), 2u);
}

TEST(LinkModelTest, DemandOvertakesWaitingSpeculationButNotTheChunkOnTheLink) {
  LinkModel link = SlowLink();
  link.Submit(1, 100, true, kSpeculative, At(0));
  link.Submit(2, 100, false, kSpeculative, At(0));
  EXPECT_FALSE(link.PopArrived(At(10)));
  link.Submit(3, 100, true, kDemand, At(10));

  EXPECT_EQ(link.PopArrived(At(150)), 1u);
  EXPECT_EQ(link.PopArrived(At(300)), 3u);
  EXPECT_FALSE(link.PopArrived(At(399)));
  EXPECT_EQ(link.PopArrived(At(400)), 2u);
}

TEST(LinkModelTest, DemandThatCameAfterTheLinkTurnedFreeDoesNotRewriteHistory) {
  LinkModel link = SlowLink();
  link.Submit(1, 100, true, kSpeculative, At(0));
  link.Submit(2, 100, false, kDemand, At(60));

  EXPECT_EQ(link.PopArrived(At(1000)), 1u);
  EXPECT_EQ(link.PopArrived(At(1000)), 2u);
}

TEST(LinkModelTest, AnIdleLinkStartsAtTheSubmission) {
  LinkModel link = SlowLink();
  link.Submit(1, 100, true, kDemand, At(0));
  ASSERT_TRUE(link.PopArrived(At(150)));
  link.Submit(2, 100, true, kDemand, At(500));

  EXPECT_FALSE(link.PopArrived(At(649)));
  EXPECT_EQ(link.PopArrived(At(650)), 2u);
}

TEST(LinkModelTest, APromotedLoadGoesBeforeDemandThatWaits) {
  LinkModel link = SlowLink();
  link.Submit(1, 100, true, kSpeculative, At(0));
  link.Submit(1, 100, false, kSpeculative, At(0));
  link.Submit(2, 100, true, kSpeculative, At(0));
  EXPECT_FALSE(link.PopArrived(At(10)));
  link.Submit(3, 100, true, kDemand, At(10));

  link.Promote(1);

  EXPECT_EQ(link.PopArrived(At(1000)), 1u);
  EXPECT_EQ(link.PopArrived(At(1000)), 1u);
  EXPECT_EQ(link.PopArrived(At(1000)), 3u);
  EXPECT_EQ(link.PopArrived(At(1000)), 2u);
}

}  // namespace
}  // namespace portolan
