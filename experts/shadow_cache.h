#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "experts/policy.h"
#include "experts/use_clock.h"

namespace portolan {

// What a demand-only cache of the same size would hold under another eviction
// order: tags, no bytes. Thread-compatible, no allocation after construction.
class ShadowCache {
 public:
  explicit ShadowCache(const PolicyShape& shape);

  // A layer needs `needs`; `next_use` says how far off an expert's next use is
  // (the farthest goes first). Returns the misses. As in a real cache the slots
  // of experts that are computed can be taken by those of the same layer that
  // are still missing, and only the one that came last is in use.
  int32_t Visit(int32_t layer, std::span<const ExpertNeed> needs,
                absl::FunctionRef<double(ExpertId)> next_use);

 private:
  // Position in tags_ of the farthest one.
  size_t Farthest(absl::FunctionRef<double(ExpertId)> next_use,
                  std::optional<size_t> except) const;

  const PolicyShape& shape_;
  std::vector<ExpertId> tags_;
  std::vector<bool> held_;         // by Index()
  std::vector<ExpertId> missing_;  // scratch
};

// What a demand-only cache under LRU would hold. It keeps uses of its own, for
// those of a cache that reads ahead count arrivals as well. Thread-compatible,
// no allocation after construction.
class LruShadow {
 public:
  explicit LruShadow(const PolicyShape& shape) : uses_(shape), cache_(shape) {}

  // A layer needs `needs`. Returns the misses.
  int32_t Visit(int32_t layer, std::span<const ExpertNeed> needs);

 private:
  UseClock uses_;
  ShadowCache cache_;
};

}  // namespace portolan
