#include "experts/use_clock.h"

#include <algorithm>
#include <tuple>

#include "runtime/base/check.h"

namespace portolan {

UseClock::UseClock(const PolicyShape& shape)
    : num_experts_(static_cast<size_t>(shape.num_experts)),
      last_(shape.num_ids(), 0),
      count_(shape.num_ids(), 0) {}

void UseClock::Touch(ExpertId id) {
  Refresh(id);
  ++count_[Index(id)];
}

void UseClock::Refresh(ExpertId id) { last_[Index(id)] = ++now_; }

size_t UseClock::OldestOf(std::span<const ExpertId> ids) const {
  PORTOLAN_CHECK(!ids.empty());
  const auto oldest = std::ranges::min_element(
      ids, {}, [this](ExpertId id) { return last_use(id); });
  return static_cast<size_t>(oldest - ids.begin());
}

size_t UseClock::RarestOf(std::span<const ExpertId> ids) const {
  PORTOLAN_CHECK(!ids.empty());
  const auto rarest = std::ranges::min_element(ids, {}, [this](ExpertId id) {
    return std::tuple(num_uses(id), last_use(id));
  });
  return static_cast<size_t>(rarest - ids.begin());
}

}  // namespace portolan
