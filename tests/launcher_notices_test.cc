#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "comm/agreement.h"
#include "comm/local_world.h"
#include "launcher/notices.h"

namespace portolan {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(NoticesTest, WhatAllRanksSayIsToldOnceAndOthersNameTheirRanks) {
  const std::vector<std::vector<std::string>> said = {
      {"few slots"},
      {"a stale pack", "few slots"},
      {"few slots", "a stale pack"}};

  EXPECT_THAT(MergeNotices(said, std::vector<std::string>{"a", "b", "c"}),
              ElementsAre("notice: few slots",
                          "notice: rank 1 on b, rank 2 on c: a stale pack"));
}

TEST(NoticesTest, OneRankNeedsNoName) {
  const std::vector<std::vector<std::string>> said = {{"few slots"}};
  EXPECT_THAT(MergeNotices(said, std::vector<std::string>{"a"}),
              ElementsAre("notice: few slots"));
}

TEST(NoticesTest, ThoseOfEveryRankReachTheUser) {
  testing::internal::CaptureStderr();
  const absl::Status status =
      RunLocalWorld(3, [](Transport& transport) -> absl::Status {
        std::vector<std::string> mine = {"of all"};
        if (transport.rank() == Rank{2}) mine.emplace_back("of the last");
        if (absl::Status s = TellNotices(transport, mine, absl::Seconds(30));
            !s.ok()) {
          return s;
        }
        if (transport.rank() == Rank{1}) TellNotice(transport, "later");
        return absl::OkStatus();
      });
  const std::string told = testing::internal::GetCapturedStderr();

  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(
      told, AllOf(HasSubstr("notice: of all\n"),
                  HasSubstr("notice: rank 2 on "), HasSubstr(": of the last\n"),
                  HasSubstr("notice: rank 1 on "), HasSubstr(": later\n")));
  EXPECT_THAT(told, Not(HasSubstr("rank 0")));
}

// What three ranks print that call ReportOnce() with `status`; rank 0 goes
// without it where it `leaves`.
std::string Reported(const absl::Status& status, bool leaves) {
  testing::internal::CaptureStderr();
  (void)RunLocalWorld(3, [&](Transport& transport) -> absl::Status {
    if (leaves && transport.rank() == Rank{0}) {
      return absl::AbortedError("gone");
    }
    ReportOnce(transport, status);
    return status;
  });
  return testing::internal::GetCapturedStderr();
}

TEST(ReportOnceTest, AnErrorOfAllRanksIsToldByTheFirst) {
  EXPECT_EQ(
      Reported(OfAllRanks(absl::FailedPreconditionError("unlike")), false),
      "error: unlike\n");
}

TEST(ReportOnceTest, WhereTheFirstRankIsGoneOthersTellIt) {
  EXPECT_THAT(
      Reported(OfAllRanks(absl::FailedPreconditionError("unlike")), true),
      HasSubstr("error: unlike\n"));
}

TEST(ReportOnceTest, AnErrorOfTheRankItselfIsToldByEach) {
  EXPECT_EQ(Reported(absl::DataLossError("torn"), false),
            "error: torn\nerror: torn\nerror: torn\n");
}

}  // namespace
}  // namespace portolan
