#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

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

// Another machine, as hwloc's synthetic description says.
class FakedMachine {
 public:
  explicit FakedMachine(const char* description) {
    setenv("HWLOC_SYNTHETIC", description, 1);
  }
  ~FakedMachine() { unsetenv("HWLOC_SYNTHETIC"); }
};

TEST(CpuTopologyTest, RanksOfATwoSocketNodeStayOnTheirSocket) {
  const FakedMachine machine("package:2 numa:1 core:4 pu:2");
  const std::vector<int> cpus = AllowedCpus();

  ASSERT_EQ(cpus.size(), 16u);
  const ThreadPlan first = PlanThreads(cpus, 0, 0, 2);
  const ThreadPlan second = PlanThreads(cpus, 0, 1, 2);
  EXPECT_THAT(NumaNodesOf(first.cpus), ElementsAre(0));
  EXPECT_THAT(NumaNodesOf(second.cpus), ElementsAre(1));
}

TEST(CpuTopologyTest, FourRanksOnTwoNodesShareCoresWithNobody) {
  const FakedMachine machine("numa:2 core:4 pu:2");
  const std::vector<int> cpus = AllowedCpus();

  for (int rank = 0; rank < 4; ++rank) {
    const std::vector<int> own = PlanThreads(cpus, 0, rank, 4).cpus;
    ASSERT_EQ(own.size(), 4u);
    EXPECT_THAT(NumaNodesOf(own), ElementsAre(rank / 2));
    // Both siblings of two cores: siblings are numbered one after the other.
    for (size_t i = 0; i < own.size(); i += 2) {
      EXPECT_EQ(own[i] + 1, own[i + 1]);
    }
  }
}

TEST(CpuTopologyTest, ARankOverSeveralNodesHasAllOfThem) {
  const FakedMachine machine("numa:4 core:2 pu:1");

  EXPECT_THAT(NumaNodesOf(PlanThreads(AllowedCpus(), 0, 0, 1).cpus),
              ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(NumaNodesOf({}), IsEmpty());
}

TEST(CpuTopologyTest, ARankHasItsMemoryWhereItsThreadsMayRun) {
  const FakedMachine machine("numa:2 core:4 pu:1");
  const std::vector<int> cpus = AllowedCpus();

  const ThreadPlan bound = PlanThreads(cpus, 4, 1, 2);
  const ThreadPlan floating = PlanThreads(cpus, 2, 0, 1);

  EXPECT_THAT(MemoryNodes(bound, cpus), ElementsAre(1));
  EXPECT_THAT(floating.cpus, IsEmpty());
  EXPECT_THAT(MemoryNodes(floating, cpus), ElementsAre(0, 1));
  // A launcher has bound the process to the second node.
  EXPECT_THAT(MemoryNodes(floating, {cpus.begin() + 4, cpus.end()}),
              ElementsAre(1));
}

TEST(CpuTopologyTest, MemoryThatTheSystemWillNotPlaceStaysUsable) {
  const FakedMachine machine("numa:2 core:1 pu:1");
  std::vector<std::byte> memory(1 << 16);

  PlaceMemory(memory, {0, 1});
  PlaceMemory(memory, {});

  memory[12345] = std::byte{7};
  EXPECT_EQ(memory[12345], std::byte{7});
}

}  // namespace
}  // namespace portolan
