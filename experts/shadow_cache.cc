#include "experts/shadow_cache.h"

#include <limits>

namespace portolan {

ShadowCache::ShadowCache(const PolicyShape& shape)
    : shape_(shape), held_(shape.num_ids(), false) {
  tags_.reserve(static_cast<size_t>(shape.num_slots));
  missing_.reserve(static_cast<size_t>(shape.num_experts));
}

int32_t ShadowCache::Visit(int32_t layer, std::span<const ExpertNeed> needs,
                           absl::FunctionRef<double(ExpertId)> next_use) {
  // What is held is computed before any slot is given away.
  missing_.clear();
  for (const ExpertNeed& need : needs) {
    const ExpertId id{layer, need.expert};
    if (!held_[shape_.Index(id)]) missing_.push_back(id);
  }
  std::optional<size_t> loading;
  for (const ExpertId id : missing_) {
    held_[shape_.Index(id)] = true;
    if (tags_.size() < static_cast<size_t>(shape_.num_slots)) {
      tags_.push_back(id);
      continue;
    }
    loading = Farthest(next_use, loading);
    held_[shape_.Index(tags_[*loading])] = false;
    tags_[*loading] = id;
  }
  return static_cast<int32_t>(missing_.size());
}

size_t ShadowCache::Farthest(absl::FunctionRef<double(ExpertId)> next_use,
                             std::optional<size_t> except) const {
  size_t farthest = 0;
  double distance = -std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < tags_.size(); ++i) {
    if (i == except) continue;
    const double next = next_use(tags_[i]);
    if (next > distance) {
      distance = next;
      farthest = i;
    }
  }
  return farthest;
}

int32_t LruShadow::Visit(int32_t layer, std::span<const ExpertNeed> needs) {
  // All that a layer needs is as fresh as can be before anything is given up.
  for (const ExpertNeed& need : needs) uses_.Touch({layer, need.expert});
  return cache_.Visit(layer, needs, [this](ExpertId id) {
    return -static_cast<double>(uses_.last_use(id));
  });
}

}  // namespace portolan
