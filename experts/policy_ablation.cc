#include "experts/policy_ablation.h"

#include <array>
#include <utility>

namespace portolan {
namespace {

class AblatedPolicy final : public CachePolicy {
 public:
  AblatedPolicy(const Ablation& ablation, std::unique_ptr<CachePolicy> policy,
                std::unique_ptr<CachePolicy> oracle)
      : policy_(std::move(policy)),
        oracle_(std::move(oracle)),
        evicts_(ablation.eviction ? *oracle_ : *policy_),
        admits_(ablation.admission ? *oracle_ : *policy_) {}

  std::string_view name() const override { return policy_->name(); }
  HintMerge hint_merge() const override { return policy_->hint_merge(); }
  std::string_view notice() const override { return policy_->notice(); }

  void OnBeginStep(int64_t num_tokens, absl::Time now) override {
    policy_->OnBeginStep(num_tokens, now);
    oracle_->OnBeginStep(num_tokens, now);
  }
  void OnHints(int32_t layer, int32_t distance, std::span<const float> scores,
               absl::Time now) override {
    policy_->OnHints(layer, distance, scores, now);
  }
  void OnBeginLayer(int32_t layer, std::span<const ExpertNeed> needs,
                    absl::Time now) override {
    policy_->OnBeginLayer(layer, needs, now);
    oracle_->OnBeginLayer(layer, needs, now);
  }
  void OnMoreNeeds(int32_t layer, std::span<const ExpertNeed> needs,
                   absl::Time now) override {
    policy_->OnMoreNeeds(layer, needs, now);
    oracle_->OnMoreNeeds(layer, needs, now);
  }
  void OnAccess(ExpertId id, AccessKind kind, int32_t num_rows,
                absl::Time now) override {
    policy_->OnAccess(id, kind, num_rows, now);
    oracle_->OnAccess(id, kind, num_rows, now);
  }
  void OnLoaded(ExpertId id, ReadClass read_class, absl::Time now) override {
    policy_->OnLoaded(id, read_class, now);
    oracle_->OnLoaded(id, read_class, now);
  }
  void OnLoadFailed(ExpertId id) override {
    policy_->OnLoadFailed(id);
    oracle_->OnLoadFailed(id);
  }
  void OnEvicted(ExpertId id, absl::Time now) override {
    policy_->OnEvicted(id, now);
    oracle_->OnEvicted(id, now);
  }
  void OnEndLayer(int32_t layer, absl::Duration stall,
                  absl::Time now) override {
    policy_->OnEndLayer(layer, stall, now);
    oracle_->OnEndLayer(layer, stall, now);
  }

  size_t ChooseVictim(std::span<const ExpertId> evictable, ExpertId incoming,
                      absl::Time now) override {
    return evicts_.ChooseVictim(evictable, incoming, now);
  }

  std::optional<Prefetch> NextPrefetch(
      const PrefetchContext& context) override {
    if (context.has_free_slot || &evicts_ == &admits_) {
      return admits_.NextPrefetch(context);
    }
    const std::array victim = {context.evictable[evicts_.ChooseVictim(
        context.evictable, {}, context.now)]};
    PrefetchContext left = context;
    left.evictable = victim;
    return admits_.NextPrefetch(left);
  }

 private:
  const std::unique_ptr<CachePolicy> policy_;
  const std::unique_ptr<CachePolicy> oracle_;
  CachePolicy& evicts_;
  CachePolicy& admits_;
};

}  // namespace

std::string_view SplitAblation(std::string_view text, Ablation& ablation) {
  ablation = {};
  while (true) {
    const size_t plus = text.rfind('+');
    if (plus == std::string_view::npos) return text;
    const std::string_view part = text.substr(plus + 1);
    if (part == "prediction") {
      ablation.prediction = true;
    } else if (part == "eviction") {
      ablation.eviction = true;
    } else if (part == "admission") {
      ablation.admission = true;
    } else {
      return text;
    }
    text = text.substr(0, plus);
  }
}

std::unique_ptr<CachePolicy> MakeAblatedPolicy(
    const Ablation& ablation, std::unique_ptr<CachePolicy> policy,
    std::unique_ptr<CachePolicy> oracle) {
  return std::make_unique<AblatedPolicy>(ablation, std::move(policy),
                                         std::move(oracle));
}

}  // namespace portolan
