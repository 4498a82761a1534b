#include "experts/policy_oracle.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace portolan {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

class OraclePolicy final : public CachePolicy {
 public:
  OraclePolicy(const PolicyShape& shape, Future future)
      : shape_(shape), future_(std::move(future)), uses_(shape.num_ids()) {
    for (size_t visit = 0; visit < future_.visits.size(); ++visit) {
      for (const int32_t expert : future_.visits[visit]) {
        uses_[shape_.Index({LayerOf(visit), expert})].times.push_back(
            static_cast<int64_t>(visit));
      }
    }
  }

  std::string_view name() const override { return "oracle"; }

  void OnBeginLayer(int32_t /*layer*/, std::span<const ExpertNeed> /*needs*/,
                    absl::Time /*now*/) override {
    ++visit_;
    // What the layer in work needs comes by demand.
    cursor_ = std::max(cursor_, static_cast<size_t>(visit_ + 1));
    cursor_expert_ = 0;
  }

  void OnEvicted(ExpertId id, absl::Time /*now*/) override {
    // Its next use is to be read again, if that lies before the cursor.
    const int64_t next = NextUse(id);
    if (next != kNever && static_cast<size_t>(next) <= cursor_) {
      cursor_ = static_cast<size_t>(std::max(next, visit_ + 1));
      cursor_expert_ = 0;
    }
  }

  size_t ChooseVictim(std::span<const ExpertId> evictable,
                      ExpertId /*incoming*/, absl::Time /*now*/) override {
    size_t victim = 0;
    int64_t farthest = -1;
    for (size_t i = 0; i < evictable.size(); ++i) {
      const int64_t next = NextUse(evictable[i]);
      if (next > farthest) {
        farthest = next;
        victim = i;
      }
    }
    return victim;
  }

  std::optional<Prefetch> NextPrefetch(
      const PrefetchContext& context) override {
    const std::optional<ExpertId> id = NextAbsent(context.residence);
    if (!id) return std::nullopt;
    if (context.has_free_slot) return Prefetch{*id};
    const ExpertId victim =
        context.evictable[ChooseVictim(context.evictable, *id, context.now)];
    if (NextUse(victim) <= static_cast<int64_t>(cursor_)) return std::nullopt;
    return Prefetch{*id, victim};
  }

 private:
  struct Uses {
    std::vector<int64_t> times = {};
    size_t next = 0;
  };

  int32_t LayerOf(size_t visit) const {
    return static_cast<int32_t>(visit % static_cast<size_t>(shape_.num_layers));
  }

  // The first visit after the one in work that needs the expert.
  int64_t NextUse(ExpertId id) {
    Uses& uses = uses_[shape_.Index(id)];
    while (uses.next < uses.times.size() && uses.times[uses.next] <= visit_) {
      ++uses.next;
    }
    return uses.next < uses.times.size() ? uses.times[uses.next] : kNever;
  }

  // The need of earliest deadline that is not in memory; all before it are.
  std::optional<ExpertId> NextAbsent(std::span<const Residence> residence) {
    for (; cursor_ < future_.visits.size(); ++cursor_, cursor_expert_ = 0) {
      const auto& experts = future_.visits[cursor_];
      for (; cursor_expert_ < experts.size(); ++cursor_expert_) {
        const ExpertId id{LayerOf(cursor_), experts[cursor_expert_]};
        if (residence[shape_.Index(id)] == Residence::kAbsent) return id;
      }
    }
    return std::nullopt;
  }

  const PolicyShape shape_;
  const Future future_;
  std::vector<Uses> uses_;  // by Index()
  int64_t visit_ = -1;      // in work
  size_t cursor_ = 0;       // visits before it need nothing more
  size_t cursor_expert_ = 0;
};

}  // namespace

std::unique_ptr<CachePolicy> MakeOraclePolicy(const PolicyShape& shape,
                                              Future future) {
  return std::make_unique<OraclePolicy>(shape, std::move(future));
}

}  // namespace portolan
