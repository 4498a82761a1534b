#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "experts/policy.h"

namespace portolan {

// When and how often each expert was used, counted in uses: the memory that
// the recency and frequency policies share. Thread-compatible.
class UseClock {
 public:
  explicit UseClock(const PolicyShape& shape);

  void Touch(ExpertId id);
  // Position in the order of uses without being a use, as when a prefetch
  // arrives.
  void Refresh(ExpertId id);

  int64_t last_use(ExpertId id) const { return last_[Index(id)]; }
  int64_t num_uses(ExpertId id) const { return count_[Index(id)]; }

  // Index of the expert used longest ago; of the fewest uses, of these the
  // oldest. Ties: the lowest position. Requires a non-empty span.
  size_t OldestOf(std::span<const ExpertId> ids) const;
  size_t RarestOf(std::span<const ExpertId> ids) const;

 private:
  size_t Index(ExpertId id) const {
    return static_cast<size_t>(id.layer) * num_experts_ +
           static_cast<size_t>(id.expert);
  }

  size_t num_experts_;
  int64_t now_ = 0;
  std::vector<int64_t> last_;  // 0: never
  std::vector<int64_t> count_;
};

}  // namespace portolan
