#include "experts/policy_lru.h"

#include <algorithm>
#include <vector>

#include "experts/use_clock.h"

namespace portolan {
namespace {

class LruPolicy final : public CachePolicy {
 public:
  explicit LruPolicy(const PolicyShape& shape) : uses_(shape) {}

  std::string_view name() const override { return "lru"; }

  void OnAccess(ExpertId id, AccessKind /*kind*/, int32_t /*num_rows*/,
                absl::Time /*now*/) override {
    uses_.Touch(id);
  }

  size_t ChooseVictim(std::span<const ExpertId> evictable,
                      ExpertId /*incoming*/, absl::Time /*now*/) override {
    return uses_.OldestOf(evictable);
  }

 private:
  UseClock uses_;
};

class LfuPolicy final : public CachePolicy {
 public:
  explicit LfuPolicy(const PolicyShape& shape) : uses_(shape) {}

  std::string_view name() const override { return "lfu"; }

  void OnAccess(ExpertId id, AccessKind /*kind*/, int32_t /*num_rows*/,
                absl::Time /*now*/) override {
    uses_.Touch(id);
  }

  size_t ChooseVictim(std::span<const ExpertId> evictable,
                      ExpertId /*incoming*/, absl::Time /*now*/) override {
    return uses_.RarestOf(evictable);
  }

 private:
  UseClock uses_;
};

}  // namespace

std::unique_ptr<CachePolicy> MakeLruPolicy(const PolicyShape& shape) {
  return std::make_unique<LruPolicy>(shape);
}

std::unique_ptr<CachePolicy> MakeLfuPolicy(const PolicyShape& shape) {
  return std::make_unique<LfuPolicy>(shape);
}

}  // namespace portolan
