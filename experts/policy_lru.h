#pragma once

#include <cstdint>
#include <memory>

#include "experts/policy.h"

namespace portolan {

// Demand only: nothing is read ahead. `lru` gives up the expert whose last use
// is oldest, `lfu` the one with the fewest uses since the start (ties: the
// oldest use). A use is an access of a layer's union, not of a token.
std::unique_ptr<CachePolicy> MakeLruPolicy(const PolicyShape& shape);
std::unique_ptr<CachePolicy> MakeLfuPolicy(const PolicyShape& shape);

}  // namespace portolan
