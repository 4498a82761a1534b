#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "cluster/coordinator/status_page.h"

namespace portolan {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

v1::RankStats& AddRank(v1::Stats& stats, uint32_t rank) {
  v1::RankStats& added = *stats.add_ranks();
  added.set_job("night");
  added.set_rank(rank);
  added.set_host("node7");
  added.set_model("tiny");
  return added;
}

TEST(StatusPageTest, ShowsTheExpertFiguresOfEachRankBelowIt) {
  v1::Stats stats;
  v1::RankStats& busy = AddRank(stats, 0);
  busy.set_expert_hits(70);
  busy.set_expert_late(8);
  busy.set_expert_misses(9);
  busy.set_expert_stall_s(1.25);
  busy.set_expert_memory_bytes(3 << 20);
  AddRank(stats, 1).set_expert_hits(5'000'000'000);

  const std::string page = StatusPage(stats);

  EXPECT_THAT(page, ContainsRegex("night +0 node7 [^\n]*\n +experts: 70 hits, "
                                  "8 late, 9 misses, waited 1\\.2 s, 3\\.0 MiB "
                                  "of memory\n"));
  EXPECT_THAT(page, ContainsRegex("night +1 node7 [^\n]*\n +experts: "
                                  "5000000000 hits, 0 late"));
}

TEST(StatusPageTest, SaysThatNoRankIsAttached) {
  const std::string page = StatusPage({});

  EXPECT_THAT(page, HasSubstr("(no rank is attached)\n"));
  EXPECT_EQ(page.find("experts:"), std::string::npos);
}

}  // namespace
}  // namespace portolan
