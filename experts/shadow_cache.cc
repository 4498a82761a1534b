#include "experts/shadow_cache.h"

namespace portolan {

ShadowCache::ShadowCache(const PolicyShape& shape)
    : shape_(shape), held_(shape.num_ids(), false), visit_(shape.num_ids(), 0) {
  tags_.reserve(static_cast<size_t>(shape.num_slots));
}

int32_t ShadowCache::Visit(int32_t layer, std::span<const ExpertNeed> needs,
                           absl::FunctionRef<float(ExpertId)> next_use) {
  ++now_;
  int32_t misses = 0;
  for (const ExpertNeed& need : needs) {
    visit_[shape_.Index({layer, need.expert})] = now_;
  }
  for (const ExpertNeed& need : needs) {
    const ExpertId id{layer, need.expert};
    if (held_[shape_.Index(id)]) continue;
    ++misses;
    held_[shape_.Index(id)] = true;
    if (tags_.size() < static_cast<size_t>(shape_.num_slots)) {
      tags_.push_back(id);
      continue;
    }
    ExpertId& victim = tags_[Farthest(next_use)];
    held_[shape_.Index(victim)] = false;
    victim = id;
  }
  return misses;
}

size_t ShadowCache::Farthest(
    absl::FunctionRef<float(ExpertId)> next_use) const {
  size_t farthest = 0;
  float distance = -1;
  for (size_t i = 0; i < tags_.size(); ++i) {
    if (visit_[shape_.Index(tags_[i])] == now_) continue;
    const float next = next_use(tags_[i]);
    if (next > distance) {
      distance = next;
      farthest = i;
    }
  }
  return farthest;
}

}  // namespace portolan
