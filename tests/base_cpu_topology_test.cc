#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/base/cpu_topology.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(CpuTopologyTest, RanksThatFillTheNodeAreBoundToDisjointCpus) {
  const std::vector<int> cpus = {0, 2, 1, 3};

  EXPECT_THAT(PlanThreads(cpus, 0, 0, 2).cpus, ElementsAre(0, 2));
  EXPECT_THAT(PlanThreads(cpus, 2, 1, 2).cpus, ElementsAre(1, 3));
}

TEST(CpuTopologyTest, RanksNeverOversubscribeUnlessAsked) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    EXPECT_LE(PlanThreads({0, 1, 2, 3}, 0, 0, ranks).num_threads * ranks, 4);
  }
  EXPECT_EQ(PlanThreads({0, 1}, 0, 4, 5).num_threads, 1);
  EXPECT_EQ(PlanThreads({0, 1}, 3, 0, 1).num_threads, 3);
}

TEST(CpuTopologyTest, AJobThatLeavesCpusFreeOrSharesThemIsNotBound) {
  EXPECT_THAT(PlanThreads({0, 1, 2, 3}, 1, 0, 2).cpus, IsEmpty());
  EXPECT_THAT(PlanThreads({0, 1}, 2, 0, 2).cpus, IsEmpty());
  EXPECT_THAT(PlanThreads({}, 1, 0, 1).cpus, IsEmpty());
}

TEST(CpuTopologyTest, AllowedCpusAreDistinct) {
  std::vector<int> cpus = AllowedCpus();
  std::sort(cpus.begin(), cpus.end());
  EXPECT_EQ(std::adjacent_find(cpus.begin(), cpus.end()), cpus.end());
  EXPECT_FALSE(CpuModelName().empty());
}

}  // namespace
}  // namespace portolan
