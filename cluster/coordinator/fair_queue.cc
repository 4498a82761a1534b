#include "cluster/coordinator/fair_queue.h"

#include <algorithm>
#include <iterator>

#include "runtime/base/check.h"

namespace portolan {

void FairQueue::Push(std::string_view name, Item item) {
  PORTOLAN_CHECK(item.cost >= 1);
  Flow& flow = flows_.try_emplace(std::string(name)).first->second;
  if (flow.waiting.empty()) flow.served = std::max(flow.served, level_);
  const bool inserted = flow.waiting.emplace(item.seq, item.cost).second;
  PORTOLAN_CHECK(inserted);
  flow.waiting_cost += item.cost;
  total_cost_ += item.cost;
  ++num_requests_;
}

bool FairQueue::Remove(std::string_view name, int64_t seq) {
  const auto flow = flows_.find(name);
  if (flow == flows_.end()) return false;
  const auto item = flow->second.waiting.find(seq);
  if (item == flow->second.waiting.end()) return false;
  flow->second.waiting_cost -= item->second;
  total_cost_ -= item->second;
  --num_requests_;
  flow->second.waiting.erase(item);
  return true;
}

void FairQueue::Refund(std::string_view name, int64_t cost) {
  const auto flow = flows_.find(name);
  if (flow != flows_.end()) flow->second.served -= cost;
}

void FairQueue::Serve(absl::FunctionRef<Verdict(const Item&)> offer) {
  std::map<std::string_view, bool> skipped;
  for (auto flow = Least(skipped); flow != flows_.end();
       flow = Least(skipped)) {
    const auto& [seq, cost] = *flow->second.waiting.begin();
    const Verdict verdict = offer(Item{seq, cost});
    if (verdict == Verdict::kStop) break;
    if (verdict == Verdict::kTake) {
      Take(flow);
    } else if (verdict == Verdict::kDrop) {
      Pop(flow->second);
    } else {
      skipped[flow->first] = true;
    }
  }
  ForgetIdleFlows();
}

FairQueue::Flows::iterator FairQueue::Least(
    const std::map<std::string_view, bool>& skipped) {
  auto least = flows_.end();
  for (auto flow = flows_.begin(); flow != flows_.end(); ++flow) {
    if (flow->second.waiting.empty() || skipped.contains(flow->first)) continue;
    if (least == flows_.end() || flow->second.served < least->second.served) {
      least = flow;
    }
  }
  return least;
}

void FairQueue::Take(Flows::iterator flow) {
  level_ = std::max(level_, flow->second.served);
  flow->second.served += flow->second.waiting.begin()->second;
  Pop(flow->second);
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
  for (auto flow = flows_.begin(); flow != flows_.end();) {
    const bool idle =
        flow->second.waiting.empty() && flow->second.served <= level_;
    flow = idle ? flows_.erase(flow) : std::next(flow);
  }
}

int64_t FairQueue::CostAhead(std::string_view name, int64_t cost) const {
  const auto own = flows_.find(name);
  const int64_t own_cost = own == flows_.end() ? 0 : own->second.waiting_cost;
  int64_t ahead = own_cost;
  for (const auto& [other, flow] : flows_) {
    if (other != name) ahead += std::min(flow.waiting_cost, own_cost + cost);
  }
  return ahead;
}

int64_t FairQueue::PositionInFlow(std::string_view name, int64_t seq) const {
  const auto flow = flows_.find(name);
  if (flow == flows_.end()) return 0;
  const auto& waiting = flow->second.waiting;
  return std::distance(waiting.begin(), waiting.lower_bound(seq));
}

}  // namespace portolan
