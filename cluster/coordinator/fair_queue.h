#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "absl/functional/function_ref.h"

namespace portolan {

// Policy: who is served next. Requests wait in flows (one per client and kind
// of call); the flow that has had the least service goes first, and inside a
// flow the oldest request. Service is counted in tokens, so a client with long
// requests and one with short ones get equal shares.
//
// A flow that was away comes back at the service level of those present: being
// idle saves up nothing, and a debt is not forgotten.
//
// Cost: an operation takes a number of steps that grows with the logarithm of
// the flows and of their costs, Serve() so many for each offer that it makes;
// PositionInFlow() takes a step for each request before.
//
// Thread-compatible. Deterministic: ties by flow name.
// Source: virtual token counters (Sheng et al., "Fairness in Serving Large
// Language Models", OSDI 2024).
class FairQueue {
 public:
  // `seq` orders requests inside a flow and is unique; cost in tokens, >= 1.
  struct Item {
    int64_t seq = 0;
    int64_t cost = 1;
  };
  enum class Verdict {
    kTake,      // leaves the queue and is charged to its flow
    kDrop,      // leaves the queue
    kSkipFlow,  // cannot go now; its flow is passed over in this call
    kStop,
  };

  void Push(std::string_view flow, Item item);
  // False if it is not there.
  bool Remove(std::string_view flow, int64_t seq);
  // Gives back service that was charged but not used.
  void Refund(std::string_view flow, int64_t cost);

  // Offers the heads of the flows, best first, until nothing is left to offer.
  void Serve(absl::FunctionRef<Verdict(const Item&)> offer);

  // Cost that is served before a new request of `cost` in `flow`, if the flows
  // take turns: of each other flow at most as much as of this one.
  int64_t CostAhead(std::string_view flow, int64_t cost) const;
  // Requests that wait in the same flow with a smaller seq.
  int64_t PositionInFlow(std::string_view flow, int64_t seq) const;

  int64_t num_requests() const { return num_requests_; }
  int64_t total_cost() const { return total_cost_; }
  // Flows and sums looked at so far: what the cost is made of.
  int64_t num_steps() const { return num_steps_; }

 private:
  // Sums of the waiting costs of flows, by size: a Fenwick tree over all
  // possible costs, of which only the nodes that something is in exist.
  class CostTree {
   public:
    // Adds or takes away (`count` -1) a flow.
    void Add(int64_t cost, int64_t count, int64_t& num_steps);
    // Of all flows the sum of min(their cost, `cap`).
    int64_t CappedSum(int64_t cap, int64_t& num_steps) const;

   private:
    struct Node {
      int64_t count = 0;
      int64_t sum = 0;
    };
    std::unordered_map<int64_t, Node> nodes_;
    Node all_;
  };
  struct Flow {
    std::map<int64_t, int64_t> waiting;  // seq -> cost
    int64_t waiting_cost = 0;
    int64_t served = 0;
  };
  using Flows = std::map<std::string, Flow, std::less<>>;
  // Least service first, then by name. The names are those of `flows_`.
  using Order = std::set<std::pair<int64_t, std::string_view>>;

  // Before and after anything about a flow changes.
  void Unlist(Flows::const_iterator flow);
  void List(Flows::const_iterator flow);
  void Take(Flows::iterator flow);
  void Pop(Flow& flow);
  void ForgetIdleFlows();

  Flows flows_;
  Order ready_;     // flows with requests, but those that Serve() passed over
  Order idle_;      // the others
  CostTree costs_;  // of the flows with requests
  int64_t level_ = 0;  // service of the flow that was served last
  int64_t num_requests_ = 0;
  int64_t total_cost_ = 0;
  mutable int64_t num_steps_ = 0;
};

}  // namespace portolan
