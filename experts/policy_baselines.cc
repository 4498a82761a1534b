#include "experts/policy_baselines.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "experts/hints.h"
#include "experts/history.h"
#include "experts/use_clock.h"

namespace portolan {
namespace {

// What the baselines share: the scores of layers ahead, and the order of uses.
class HintedPolicy : public CachePolicy {
 public:
  explicit HintedPolicy(const PolicyShape& shape)
      : shape_(shape), uses_(shape), scores_(shape.num_ids(), 0.0f) {}

  void OnBeginStep(int64_t /*num_tokens*/, absl::Time /*now*/) override {
    layer_ = -1;
    std::ranges::fill(scores_, 0.0f);
  }

  void OnHints(int32_t layer, int32_t /*distance*/,
               std::span<const float> scores, absl::Time /*now*/) override {
    if (layer >= shape_.num_layers) return;
    std::ranges::copy(scores, scores_.begin() + static_cast<std::ptrdiff_t>(
                                                    shape_.Index({layer, 0})));
  }

  void OnBeginLayer(int32_t layer, std::span<const ExpertNeed> /*needs*/,
                    absl::Time /*now*/) override {
    layer_ = layer;
  }

  void OnAccess(ExpertId id, AccessKind /*kind*/, int32_t /*num_rows*/,
                absl::Time /*now*/) override {
    uses_.Touch(id);
  }

  // A prefetch is as fresh as a use, or it would be the next victim.
  void OnLoaded(ExpertId id, ReadClass /*read_class*/,
                absl::Time /*now*/) override {
    uses_.Refresh(id);
  }

  size_t ChooseVictim(std::span<const ExpertId> evictable,
                      ExpertId /*incoming*/, absl::Time /*now*/) override {
    return uses_.OldestOf(evictable);
  }

  std::optional<Prefetch> NextPrefetch(
      const PrefetchContext& context) override {
    const std::optional<ExpertId> best = BestAbsent(context.residence);
    if (!best) return std::nullopt;
    if (context.has_free_slot) return Prefetch{*best};
    return Prefetch{
        *best,
        context.evictable[ChooseVictim(context.evictable, *best, context.now)]};
  }

 protected:
  // How urgent a foretold expert is, given layers until it is needed.
  virtual float Priority(float score, int32_t /*distance*/) const {
    return score;
  }

  // The most urgent foretold expert of a layer ahead that is not in memory.
  std::optional<ExpertId> BestAbsent(
      std::span<const Residence> residence) const {
    std::optional<ExpertId> best;
    float best_priority = 0;
    for (const ExpertId id : shape_.owned) {
      const size_t index = shape_.Index(id);
      if (id.layer <= layer_ || residence[index] != Residence::kAbsent ||
          !(scores_[index] > 0)) {
        continue;
      }
      const float priority = Priority(scores_[index], id.layer - layer_);
      if (priority > best_priority) {
        best_priority = priority;
        best = id;
      }
    }
    return best;
  }

  const PolicyShape shape_;
  UseClock uses_;
  std::vector<float> scores_;  // by Index(); of layers ahead
  int32_t layer_ = -1;         // in work
};

class AllLayerPolicy final : public HintedPolicy {
 public:
  using HintedPolicy::HintedPolicy;

  std::string_view name() const override { return "all-layer"; }

  std::string_view notice() const override {
    const size_t layers = static_cast<size_t>(shape_.num_layers);
    const size_t per_layer = (shape_.owned.size() + layers - 1) / layers;
    if (static_cast<size_t>(shape_.num_slots) >= 2 * per_layer) return {};
    return "all-layer: fewer slots than two layers need, so a layer is read "
           "ahead only in part";
  }

  // First in, first out: only arrival counts.
  void OnAccess(ExpertId /*id*/, AccessKind /*kind*/, int32_t /*num_rows*/,
                absl::Time /*now*/) override {}

  std::optional<Prefetch> NextPrefetch(
      const PrefetchContext& context) override {
    const int32_t next = (layer_ + 1) % shape_.num_layers;
    for (const ExpertId id : shape_.owned) {
      if (id.layer != next ||
          context.residence[shape_.Index(id)] != Residence::kAbsent) {
        continue;
      }
      if (context.has_free_slot) return Prefetch{id};
      return Prefetch{
          id,
          context.evictable[ChooseVictim(context.evictable, id, context.now)]};
    }
    return std::nullopt;
  }
};

class Gate1Policy final : public HintedPolicy {
 public:
  explicit Gate1Policy(const PolicyShape& shape)
      : HintedPolicy(shape),
        share_(shape.num_slots / shape.num_layers),
        held_(static_cast<size_t>(shape.num_layers), 0) {}

  std::string_view name() const override { return "gate-1"; }

  std::string_view notice() const override {
    if (PerLayer()) return {};
    return "gate-1: fewer slots than top-k experts of each layer need, so one "
           "LRU order serves all layers";
  }

  void OnLoaded(ExpertId id, ReadClass read_class, absl::Time now) override {
    HintedPolicy::OnLoaded(id, read_class, now);
    ++held_[static_cast<size_t>(id.layer)];
  }

  void OnEvicted(ExpertId id, absl::Time /*now*/) override {
    --held_[static_cast<size_t>(id.layer)];
  }

  size_t ChooseVictim(std::span<const ExpertId> evictable, ExpertId incoming,
                      absl::Time /*now*/) override {
    if (!PerLayer()) return uses_.OldestOf(evictable);
    // The oldest of the incoming expert's layer, if that has its share; else of
    // the layers that have more than theirs.
    const bool full = held_[static_cast<size_t>(incoming.layer)] >= share_;
    std::optional<size_t> victim;
    for (size_t i = 0; i < evictable.size(); ++i) {
      const int32_t layer = evictable[i].layer;
      const bool fits = full ? layer == incoming.layer
                             : held_[static_cast<size_t>(layer)] > share_;
      if (fits && (!victim || uses_.last_use(evictable[i]) <
                                  uses_.last_use(evictable[*victim]))) {
        victim = i;
      }
    }
    return victim ? *victim : uses_.OldestOf(evictable);
  }

 private:
  bool PerLayer() const { return share_ >= shape_.top_k; }

  const int32_t share_;
  std::vector<int32_t> held_;  // slots of each layer
};

class Gate2Policy final : public HintedPolicy {
 public:
  using HintedPolicy::HintedPolicy;
  std::string_view name() const override { return "gate-2"; }
};

class EamPolicy final : public HintedPolicy {
 public:
  explicit EamPolicy(const PolicyShape& shape)
      : HintedPolicy(shape),
        tokens_(shape.num_ids(), 0),
        layer_tokens_(static_cast<size_t>(shape.num_layers), 0) {}

  std::string_view name() const override { return "eam"; }

  void OnAccess(ExpertId id, AccessKind kind, int32_t num_rows,
                absl::Time now) override {
    HintedPolicy::OnAccess(id, kind, num_rows, now);
    tokens_[shape_.Index(id)] += num_rows;
    layer_tokens_[static_cast<size_t>(id.layer)] += num_rows;
  }

  size_t ChooseVictim(std::span<const ExpertId> evictable,
                      ExpertId /*incoming*/, absl::Time /*now*/) override {
    const auto smallest =
        std::ranges::min_element(evictable, {}, [this](ExpertId id) {
          return std::pair(ActivationRatio(id), uses_.last_use(id));
        });
    return static_cast<size_t>(smallest - evictable.begin());
  }

 protected:
  float Priority(float score, int32_t distance) const override {
    return score * (1.0f - static_cast<float>(distance) /
                               static_cast<float>(shape_.num_layers + 1));
  }

 private:
  // Share of the layer's assignments, less for layers that come later.
  double ActivationRatio(ExpertId id) const {
    const auto all =
        static_cast<double>(layer_tokens_[static_cast<size_t>(id.layer)]);
    const auto own = static_cast<double>(tokens_[shape_.Index(id)]);
    const double decay =
        1.0 - static_cast<double>(id.layer) / (shape_.num_layers + 1);
    return all > 0 ? own / all * decay : 0.0;
  }

  std::vector<int64_t> tokens_;        // by Index()
  std::vector<int64_t> layer_tokens_;  // [num_layers]
};

class PinPolicy final : public HintedPolicy {
 public:
  PinPolicy(const PolicyShape& shape, const History* history)
      : HintedPolicy(shape), pinned_(shape.num_ids(), false) {
    if (history == nullptr) return;
    const std::vector<float> profile = history->UseProfile();
    order_ = shape_.owned;
    std::ranges::stable_sort(order_, std::greater<>(), [&](ExpertId id) {
      return profile[shape_.Index(id)];
    });
    const int32_t count =
        std::min(shape.num_slots * 3 / 4, shape.num_slots - 2);
    order_.resize(std::min(order_.size(), static_cast<size_t>(count)));
    for (const ExpertId id : order_) pinned_[shape_.Index(id)] = true;
  }

  std::string_view name() const override { return "pin"; }

  std::string_view notice() const override {
    return order_.empty() ? "pin: no profile (give --history), so it is lru"
                          : "";
  }

  size_t ChooseVictim(std::span<const ExpertId> evictable,
                      ExpertId /*incoming*/, absl::Time /*now*/) override {
    const auto oldest =
        std::ranges::min_element(evictable, {}, [this](ExpertId id) {
          return std::pair(bool{pinned_[shape_.Index(id)]}, uses_.last_use(id));
        });
    return static_cast<size_t>(oldest - evictable.begin());
  }

  // Foretells nothing: only fills free slots with what is pinned.
  std::optional<Prefetch> NextPrefetch(
      const PrefetchContext& context) override {
    if (!context.has_free_slot) return std::nullopt;
    for (const ExpertId id : order_) {
      if (context.residence[shape_.Index(id)] == Residence::kAbsent) {
        return Prefetch{id};
      }
    }
    return std::nullopt;
  }

 private:
  std::vector<bool> pinned_;     // by Index()
  std::vector<ExpertId> order_;  // pinned, hottest first
};

class FmoePolicy final : public HintedPolicy {
 public:
  explicit FmoePolicy(const PolicyShape& shape)
      : HintedPolicy(shape), probability_(shape.num_ids(), 0.0f) {}

  std::string_view name() const override { return "fmoe"; }
  HintMerge hint_merge() const override { return HintMerge::kMax; }

  void OnHints(int32_t layer, int32_t /*distance*/,
               std::span<const float> scores, absl::Time /*now*/) override {
    if (layer >= shape_.num_layers) return;
    for (int32_t expert = 0; expert < shape_.num_experts; ++expert) {
      const MapScore score = MapScoreOf(scores[static_cast<size_t>(expert)]);
      const size_t index = shape_.Index({layer, expert});
      scores_[index] = score.selected ? score.probability : 0;
      // Eviction keeps the last map's view of a layer after it has passed.
      probability_[index] = score.probability;
    }
  }

  size_t ChooseVictim(std::span<const ExpertId> evictable,
                      ExpertId /*incoming*/, absl::Time /*now*/) override {
    const auto smallest =
        std::ranges::min_element(evictable, {}, [this](ExpertId id) {
          return static_cast<double>(probability_[shape_.Index(id)]) *
                 static_cast<double>(uses_.num_uses(id));
        });
    return static_cast<size_t>(smallest - evictable.begin());
  }

 protected:
  float Priority(float score, int32_t distance) const override {
    return score / static_cast<float>(distance);
  }

 private:
  std::vector<float> probability_;  // by Index()
};

}  // namespace

std::unique_ptr<CachePolicy> MakeAllLayerPolicy(const PolicyShape& shape) {
  return std::make_unique<AllLayerPolicy>(shape);
}
std::unique_ptr<CachePolicy> MakeGate1Policy(const PolicyShape& shape) {
  return std::make_unique<Gate1Policy>(shape);
}
std::unique_ptr<CachePolicy> MakeGate2Policy(const PolicyShape& shape) {
  return std::make_unique<Gate2Policy>(shape);
}
std::unique_ptr<CachePolicy> MakeEamPolicy(const PolicyShape& shape) {
  return std::make_unique<EamPolicy>(shape);
}
std::unique_ptr<CachePolicy> MakePinPolicy(const PolicyShape& shape,
                                           const History* history) {
  return std::make_unique<PinPolicy>(shape, history);
}
std::unique_ptr<CachePolicy> MakeFmoePolicy(const PolicyShape& shape) {
  return std::make_unique<FmoePolicy>(shape);
}

}  // namespace portolan
