#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "cluster/coordinator/fair_queue.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using Verdict = FairQueue::Verdict;

std::vector<int64_t> ServeAll(FairQueue& queue, size_t most = 100) {
  std::vector<int64_t> order;
  queue.Serve([&](const FairQueue::Item& item) {
    if (order.size() == most) return Verdict::kStop;
    order.push_back(item.seq);
    return Verdict::kTake;
  });
  return order;
}

TEST(FairQueueTest, KeepsTheOrderInsideAFlow) {
  FairQueue queue;
  for (const int64_t seq : {3, 1, 2}) queue.Push("a", {seq, 10});

  EXPECT_THAT(ServeAll(queue), ElementsAre(1, 2, 3));
}

TEST(FairQueueTest, FlowsTakeTurnsHoweverManyRequestsOneHas) {
  FairQueue queue;
  for (int64_t seq = 1; seq <= 4; ++seq) queue.Push("many", {seq, 10});
  queue.Push("few", {100, 10});

  EXPECT_THAT(ServeAll(queue), ElementsAre(100, 1, 2, 3, 4));
}

TEST(FairQueueTest, CountsTokensNotRequests) {
  FairQueue queue;
  for (int64_t seq = 1; seq <= 2; ++seq) queue.Push("long", {seq, 30});
  for (int64_t seq = 11; seq <= 16; ++seq) queue.Push("short", {seq, 10});

  EXPECT_THAT(ServeAll(queue), ElementsAre(1, 11, 12, 13, 2, 14, 15, 16));
}

TEST(FairQueueTest, WhatIsDroppedIsNotCharged) {
  FairQueue queue;
  queue.Push("a", {1, 100});
  queue.Push("a", {2, 10});
  queue.Push("b", {3, 10});
  std::vector<int64_t> taken;
  queue.Serve([&](const FairQueue::Item& item) {
    if (item.seq == 1) return Verdict::kDrop;
    taken.push_back(item.seq);
    return Verdict::kTake;
  });

  EXPECT_THAT(taken, ElementsAre(2, 3));
  EXPECT_EQ(queue.num_requests(), 0);
  EXPECT_EQ(queue.total_cost(), 0);
}

TEST(FairQueueTest, IdlingSavesUpNothing) {
  FairQueue queue;
  for (int64_t seq = 1; seq <= 20; ++seq) queue.Push("busy", {seq, 10});
  ServeAll(queue, 10);
  for (int64_t seq = 100; seq <= 103; ++seq) queue.Push("late", {seq, 10});

  EXPECT_THAT(ServeAll(queue, 4), ElementsAre(100, 11, 101, 12));
}

TEST(FairQueueTest, ARefundIsServiceNotHad) {
  FairQueue queue;
  for (int64_t seq = 1; seq <= 3; ++seq) queue.Push("a", {seq, 10});
  for (int64_t seq = 11; seq <= 13; ++seq) queue.Push("b", {seq, 10});
  ServeAll(queue, 2);
  queue.Refund("b", 10);

  EXPECT_THAT(ServeAll(queue), ElementsAre(12, 2, 13, 3));
}

TEST(FairQueueTest, ASkippedFlowDoesNotHoldUpOthers) {
  FairQueue queue;
  queue.Push("a", {1, 10});
  queue.Push("b", {2, 10});

  std::vector<int64_t> taken;
  queue.Serve([&](const FairQueue::Item& item) {
    if (item.seq == 1) return Verdict::kSkipFlow;
    taken.push_back(item.seq);
    return Verdict::kTake;
  });

  EXPECT_THAT(taken, ElementsAre(2));
  EXPECT_EQ(queue.num_requests(), 1);
}

TEST(FairQueueTest, CountsWhatGoesFirst) {
  FairQueue queue;
  for (int64_t seq = 1; seq <= 100; ++seq) queue.Push("flood", {seq, 10});
  queue.Push("own", {200, 10});

  // Own 10 tokens, and of the flood as much as of this flow.
  EXPECT_EQ(queue.CostAhead("own", 10), 10 + 20);
  EXPECT_EQ(queue.CostAhead("flood", 10), 1000 + 10);
  EXPECT_EQ(queue.total_cost(), 1010);
}

TEST(FairQueueTest, RemovesOnce) {
  FairQueue queue;
  queue.Push("a", {1, 10});

  EXPECT_TRUE(queue.Remove("a", 1));
  EXPECT_FALSE(queue.Remove("a", 1));
  EXPECT_EQ(queue.num_requests(), 0);
  EXPECT_EQ(queue.total_cost(), 0);
}

}  // namespace
}  // namespace portolan
