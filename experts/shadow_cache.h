#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "experts/policy.h"

namespace portolan {

// What a demand-only cache of the same size would hold under another eviction
// order: tags, no bytes. Thread-compatible, no allocation after construction.
class ShadowCache {
 public:
  explicit ShadowCache(const PolicyShape& shape);

  // A layer needs `needs`; `next_use` says how far off an expert's next use is
  // (the farthest goes first). Returns the misses.
  int32_t Visit(int32_t layer, std::span<const ExpertNeed> needs,
                absl::FunctionRef<float(ExpertId)> next_use);

 private:
  // Position in tags_ of the farthest one that this visit does not need, or of
  // any if it needs them all.
  size_t Farthest(absl::FunctionRef<float(ExpertId)> next_use) const;

  const PolicyShape& shape_;
  std::vector<ExpertId> tags_;
  std::vector<bool> held_;      // by Index()
  std::vector<int64_t> visit_;  // by Index(): the last one that needed it
  int64_t now_ = 0;
};

}  // namespace portolan
