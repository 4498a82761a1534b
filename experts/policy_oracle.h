#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "experts/policy.h"

namespace portolan {

// What every coming layer visit will need, in order: visits[i] holds the owned
// experts of layer i % num_layers in step i / num_layers, rising.
struct Future {
  std::vector<std::vector<int32_t>> visits = {};
};

// Knows the future (replay only): reads ahead in the order of deadlines, as far
// as the slots reach, and gives up the expert whose next use is farthest; an
// expert that is used once and then later than all residents is itself the
// next victim (Belady's MIN with bypass). A reference, not a bound: it never
// leaves the link idle for a better order.
std::unique_ptr<CachePolicy> MakeOraclePolicy(const PolicyShape& shape,
                                              Future future);

}  // namespace portolan
