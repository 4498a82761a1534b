#pragma once

#include <memory>

#include "experts/policy.h"

namespace portolan {

// Evicts by estimated next use and reads ahead only what is worth its cost.
//
// Every expert has a probability of being needed at the next visit of its
// layer: from the hints of this step where the layer is still ahead, else from
// its own aged frequency. Layers are visited cyclically, so the time to a
// visit is known. Kept is what saves most loads for the time that it holds a
// slot: P(used) over the time to the visit, the best of the next three.
//
// A speculative read is started if
//   P(use) * (link time it takes off demand)
//     > (1 - P(use)) * (delay it may cause to demand) + (regret of its slot),
// where the delay is at most one chunk, since demand overtakes between chunks;
// all measured: link speed, how long the link is idle after a layer's demand,
// and how likely the victim is to be needed. Without confident hints nothing is
// read, and what remains is a demand cache.
//
// Guard: a tags-only LRU of the same size runs beside it. If what the policy
// loads is not better than what LRU would load, it evicts as LRU and reads
// nothing ahead, until the shadow of its own eviction has done better again.
// Source: algorithms.md section 3.
std::unique_ptr<CachePolicy> MakeAdaptivePolicy(const PolicyShape& shape);

}  // namespace portolan
