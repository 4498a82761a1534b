#include "cluster/coordinator/fair_queue.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "runtime/base/check.h"

namespace portolan {
namespace {

// Of the tree; costs are below it.
constexpr int64_t kTop = int64_t{1} << 61;

}  // namespace

void FairQueue::CostTree::Add(int64_t cost, int64_t count, int64_t& num_steps) {
  all_.count += count;
  all_.sum += count * cost;
  for (int64_t i = cost; i <= kTop; i += i & -i) {
    ++num_steps;
    Node& node = nodes_[i];
    node.count += count;
    node.sum += count * cost;
    if (node.count == 0) nodes_.erase(i);
  }
}

int64_t FairQueue::CostTree::CappedSum(int64_t cap, int64_t& num_steps) const {
  Node below;
  for (int64_t i = cap; i > 0; i -= i & -i) {
    ++num_steps;
    const auto node = nodes_.find(i);
    if (node == nodes_.end()) continue;
    below.count += node->second.count;
    below.sum += node->second.sum;
  }
  return below.sum + (all_.count - below.count) * cap;
}

void FairQueue::Unlist(Flows::const_iterator flow) {
  const auto& [name, state] = *flow;
  const std::pair<int64_t, std::string_view> key(state.served, name);
  if (state.waiting.empty()) {
    idle_.erase(key);
  } else {
    ready_.erase(key);
    costs_.Add(state.waiting_cost, -1, num_steps_);
  }
}

void FairQueue::List(Flows::const_iterator flow) {
  const auto& [name, state] = *flow;
  if (state.waiting.empty()) {
    idle_.emplace(state.served, name);
  } else {
    ready_.emplace(state.served, name);
    costs_.Add(state.waiting_cost, 1, num_steps_);
  }
}

void FairQueue::Push(std::string_view name, Item item) {
  PORTOLAN_CHECK(item.cost >= 1);
  auto flow = flows_.find(name);
  if (flow == flows_.end()) {
    flow = flows_.emplace(std::string(name), Flow()).first;
  } else {
    Unlist(flow);
  }
  Flow& state = flow->second;
  if (state.waiting.empty()) state.served = std::max(state.served, level_);
  const bool inserted = state.waiting.emplace(item.seq, item.cost).second;
  PORTOLAN_CHECK(inserted);
  state.waiting_cost += item.cost;
  total_cost_ += item.cost;
  ++num_requests_;
  List(flow);
}

bool FairQueue::Remove(std::string_view name, int64_t seq) {
  const auto flow = flows_.find(name);
  if (flow == flows_.end()) return false;
  Flow& state = flow->second;
  const auto item = state.waiting.find(seq);
  if (item == state.waiting.end()) return false;
  Unlist(flow);
  state.waiting_cost -= item->second;
  total_cost_ -= item->second;
  --num_requests_;
  state.waiting.erase(item);
  List(flow);
  return true;
}

void FairQueue::Refund(std::string_view name, int64_t cost) {
  const auto flow = flows_.find(name);
  if (flow == flows_.end()) return;
  Unlist(flow);
  flow->second.served -= cost;
  List(flow);
}

void FairQueue::Serve(absl::FunctionRef<Verdict(const Item&)> offer) {
  std::vector<Order::node_type> skipped;
  while (!ready_.empty()) {
    ++num_steps_;
    const auto flow = flows_.find(ready_.begin()->second);
    const auto& [seq, cost] = *flow->second.waiting.begin();
    const Verdict verdict = offer(Item{seq, cost});
    if (verdict == Verdict::kStop) break;
    if (verdict == Verdict::kTake) {
      Take(flow);
    } else if (verdict == Verdict::kDrop) {
      Unlist(flow);
      Pop(flow->second);
      List(flow);
    } else {
      skipped.push_back(ready_.extract(ready_.begin()));
    }
  }
  for (Order::node_type& node : skipped) ready_.insert(std::move(node));
  ForgetIdleFlows();
}

void FairQueue::Take(Flows::iterator flow) {
  Unlist(flow);
  level_ = std::max(level_, flow->second.served);
  flow->second.served += flow->second.waiting.begin()->second;
  Pop(flow->second);
  List(flow);
}

void FairQueue::Pop(Flow& flow) {
  const auto head = flow.waiting.begin();
  flow.waiting_cost -= head->second;
  total_cost_ -= head->second;
  --num_requests_;
  flow.waiting.erase(head);
}

// A flow without a debt would come back at the level anyway.
void FairQueue::ForgetIdleFlows() {
  while (!idle_.empty() && idle_.begin()->first <= level_) {
    ++num_steps_;
    const auto flow = flows_.find(idle_.begin()->second);
    idle_.erase(idle_.begin());
    flows_.erase(flow);
  }
}

int64_t FairQueue::CostAhead(std::string_view name, int64_t cost) const {
  const auto own = flows_.find(name);
  const int64_t own_cost = own == flows_.end() ? 0 : own->second.waiting_cost;
  // The flow itself is in the sum with all it has, for that is below the cap.
  return costs_.CappedSum(own_cost + cost, num_steps_);
}

int64_t FairQueue::PositionInFlow(std::string_view name, int64_t seq) const {
  const auto flow = flows_.find(name);
  if (flow == flows_.end()) return 0;
  const auto& waiting = flow->second.waiting;
  return std::distance(waiting.begin(), waiting.lower_bound(seq));
}

}  // namespace portolan
