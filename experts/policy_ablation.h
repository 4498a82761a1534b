#pragma once

#include <memory>
#include <string_view>

#include "experts/policy.h"

namespace portolan {

// What the future decides in place of a policy, to see what the policy's own
// decision costs. Replay only.
struct Ablation {
  bool prediction = false;  // hints are what the gates will choose
  bool eviction = false;    // the oracle names the victims
  bool admission = false;   // the oracle names what to read ahead

  bool any() const { return prediction || eviction || admission; }
};

// Splits "adaptive+eviction" into the policy's name, which is returned, and
// what is replaced. An unknown part stays with the name, as no policy has it.
std::string_view SplitAblation(std::string_view text, Ablation& ablation);

// `policy` with the decisions in `ablation` taken by `oracle`; both see every
// event. Each then decides about what the other leaves it: a victim named by
// one is the only one that the other may take.
std::unique_ptr<CachePolicy> MakeAblatedPolicy(
    const Ablation& ablation, std::unique_ptr<CachePolicy> policy,
    std::unique_ptr<CachePolicy> oracle);

}  // namespace portolan
