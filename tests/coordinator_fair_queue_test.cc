#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
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

// The same decisions by looking at everything each time.
class SlowQueue {
 public:
  void Push(const std::string& name, int64_t seq, int64_t cost) {
    Flow& flow = flows_[name];
    if (flow.waiting.empty()) flow.served = std::max(flow.served, level_);
    flow.waiting[seq] = cost;
  }
  void Remove(const std::string& name, int64_t seq) {
    if (flows_.contains(name)) flows_[name].waiting.erase(seq);
  }
  void Refund(const std::string& name, int64_t cost) {
    if (flows_.contains(name)) flows_[name].served -= cost;
  }
  // The seq that goes next; 0: none.
  int64_t Take() {
    Flow* least = nullptr;
    for (auto& [name, flow] : flows_) {
      if (flow.waiting.empty()) continue;
      if (least == nullptr || flow.served < least->served) least = &flow;
    }
    int64_t seq = 0;
    if (least != nullptr) {
      const auto head = least->waiting.begin();
      seq = head->first;
      level_ = std::max(level_, least->served);
      least->served += head->second;
      least->waiting.erase(head);
    }
    std::erase_if(flows_, [this](const auto& entry) {
      return entry.second.waiting.empty() && entry.second.served <= level_;
    });
    return seq;
  }
  int64_t CostAhead(const std::string& name, int64_t cost) const {
    const auto own = flows_.find(name);
    const int64_t own_cost = own == flows_.end() ? 0 : Cost(own->second);
    int64_t ahead = own_cost;
    for (const auto& [other, flow] : flows_) {
      if (other != name) ahead += std::min(Cost(flow), own_cost + cost);
    }
    return ahead;
  }

 private:
  struct Flow {
    std::map<int64_t, int64_t> waiting;
    int64_t served = 0;
  };
  static int64_t Cost(const Flow& flow) {
    int64_t sum = 0;
    for (const auto& [seq, cost] : flow.waiting) sum += cost;
    return sum;
  }
  std::map<std::string, Flow> flows_;
  int64_t level_ = 0;
};

TEST(FairQueueTest, DecidesAsOneThatLooksAtEverything) {
  std::mt19937 random(1);
  const auto below = [&random](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  FairQueue queue;
  SlowQueue slow;
  int64_t seq = 0;
  for (int step = 0; step < 20'000; ++step) {
    const std::string flow = "f" + std::to_string(below(12));
    const int64_t cost = 1 + below(1 << below(14));
    switch (below(5)) {
      case 0:
      case 1:
        queue.Push(flow, {++seq, cost});
        slow.Push(flow, seq, cost);
        break;
      case 2: {
        const int64_t gone = 1 + below(seq + 1);
        queue.Remove(flow, gone);
        slow.Remove(flow, gone);
        break;
      }
      case 3:
        queue.Refund(flow, cost);
        slow.Refund(flow, cost);
        break;
      default: {
        const auto taken = ServeAll(queue, 1);
        ASSERT_EQ(taken.empty() ? 0 : taken.front(), slow.Take()) << step;
      }
    }
    ASSERT_EQ(queue.CostAhead(flow, cost), slow.CostAhead(flow, cost)) << step;
  }
}

TEST(FairQueueTest, ThousandsOfFlowsCostEachOtherLittle) {
  constexpr int64_t kFlows = 10'000;
  constexpr int64_t kStepsEach = 300;  // a scan would take 10,000
  FairQueue queue;
  for (int64_t seq = 1; seq <= kFlows; ++seq) {
    const std::string flow = "flow" + std::to_string(seq);
    queue.CostAhead(flow, 1 + seq % 1000);
    queue.Push(flow, {seq, 1 + seq % 1000});
  }
  EXPECT_LT(queue.num_steps(), kFlows * kStepsEach);

  int64_t before = queue.num_steps();
  ASSERT_EQ(ServeAll(queue, 100).size(), 100u);
  EXPECT_LT(queue.num_steps() - before, 101 * kStepsEach);
  before = queue.num_steps();
  ASSERT_EQ(ServeAll(queue, kFlows).size(), size_t{kFlows} - 100);
  EXPECT_LT(queue.num_steps() - before, kFlows * kStepsEach);
}

}  // namespace
}  // namespace portolan
