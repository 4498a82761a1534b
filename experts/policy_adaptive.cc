#include "experts/policy_adaptive.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "experts/hints.h"
#include "experts/idle_times.h"
#include "experts/shadow_cache.h"
#include "experts/use_clock.h"
#include "experts/use_rates.h"

namespace portolan {
namespace {

// An expert never seen may still come.
constexpr float kLeastProbability = 0.005f;
// What a layer farther off makes of a probability when reads compete: there
// will be time for it later, and better hints.
constexpr float kLater = 0.97f;
// Share of a victim's use that is the prefetch's fault: demand would have taken
// the slot of many of them anyway.
constexpr double kVictimsFault = 0.5;
// The guard compares sums over about this many layer visits ...
constexpr double kGuardMemory = 1.0 - 1.0 / 512;
// ... and changes its mind only for more than this much.
constexpr double kHysteresis = 0.01;
// Loads that the speculation account may be in debt before it pauses, and the
// visits of a pause: twice as many each time, until speculation gained again.
constexpr double kMaxDebt = 8;
constexpr int64_t kPause = 256;
constexpr int64_t kLongestPause = 16 * kPause;

class AdaptivePolicy final : public CachePolicy {
 public:
  explicit AdaptivePolicy(const PolicyShape& shape)
      : shape_(shape),
        rates_(shape_),
        uses_(shape_),
        lru_shadow_(shape_),
        own_shadow_(shape_),
        this_step_(shape_.num_ids(), 0.0f),
        next_step_(shape_.num_ids(), 0.0f),
        started_(shape_.num_ids(), 0.0f),
        sooner_(2 * static_cast<size_t>(shape_.num_layers) + 1, 1.0f),
        hinted_(2 * static_cast<size_t>(shape_.num_layers), false) {
    for (size_t i = 1; i < sooner_.size(); ++i) {
      sooner_[i] = sooner_[i - 1] * kLater;
    }
  }

  std::string_view name() const override { return "adaptive"; }

  void OnBeginStep(int64_t num_tokens, absl::Time now) override;
  void OnHints(int32_t layer, int32_t distance, std::span<const float> scores,
               absl::Time now) override;
  void OnBeginLayer(int32_t layer, std::span<const ExpertNeed> needs,
                    absl::Time now) override;
  void OnMoreNeeds(int32_t layer, std::span<const ExpertNeed> needs,
                   absl::Time now) override;
  void OnAccess(ExpertId id, AccessKind kind, int32_t num_rows,
                absl::Time now) override;
  void OnLoaded(ExpertId id, ReadClass read_class, absl::Time now) override;
  void OnLoadFailed(ExpertId id) override { LoseRead(id); }
  void OnEvicted(ExpertId id, absl::Time /*now*/) override { LoseRead(id); }
  size_t ChooseVictim(std::span<const ExpertId> evictable, ExpertId incoming,
                      absl::Time now) override;
  std::optional<Prefetch> NextPrefetch(const PrefetchContext& context) override;

 private:
  struct Candidate {
    ExpertId id;
    float probability = 0;
  };

  bool IsAhead(ExpertId id) const { return id.layer > layer_; }
  // P(needed at the next visit of its layer).
  float NextVisit(ExpertId id) const;
  // P(needed at a visit of which nothing is foretold).
  float AnyVisit(size_t index) const;
  // P(needed at the visit after this step's).
  float NextStep(ExpertId id, size_t index) const;
  // Layers that its slot is held for each load saved: what keeping it until one
  // of its next visits costs over the probability that it is used by then, at
  // the best of these visits.
  float NextUse(ExpertId id) const;

  // In loads: what a speculative read saves if it is used, and costs if not.
  struct Price {
    double won = 0;
    double delay = 0;
  };

  // The likeliest one, of equals the one that is needed soonest.
  Candidate BestAbsent(std::span<const Residence> residence) const;
  Price PriceOf(const LinkState& link, absl::Time now) const;
  // Compares the shadows and the account of speculation.
  void LoseRead(ExpertId id);
  void CountMisses(int32_t layer, std::span<const ExpertNeed> needs);
  void Guard(int32_t layer, std::span<const ExpertNeed> needs);

  const PolicyShape shape_;
  UseRates rates_;
  UseClock uses_;
  IdleTimes idle_;
  LruShadow lru_shadow_;
  ShadowCache own_shadow_;
  std::vector<float> this_step_;  // by Index(): P(needed), of hinted layers
  std::vector<float> next_step_;
  // Of prefetches not needed as yet: what a wrong one costs, in loads.
  std::vector<float> started_;
  std::vector<float> sooner_;  // [2 * num_layers + 1], by layers ahead
  std::vector<bool> hinted_;   // [2 * num_layers]: this step's, the next one's
  int64_t tokens_ = 1;
  int64_t next_tokens_ = 1;  // expected in the next step
  int32_t layer_ = -1;       // in work
  double lru_misses_ = 0;    // aged sums of the shadows
  double own_misses_ = 0;
  bool evicts_as_lru_ = false;
  double account_ = 0;  // loads that speculation has saved, aged
  int64_t visits_ = 0;
  int64_t paused_until_ = 0;
  int64_t pause_ = kPause;
};

void AdaptivePolicy::OnBeginStep(int64_t num_tokens, absl::Time /*now*/) {
  // After a prompt come single tokens, as before it.
  next_tokens_ = std::min(tokens_, std::max<int64_t>(1, num_tokens));
  tokens_ = std::max<int64_t>(1, num_tokens);
  layer_ = -1;
  hinted_.assign(hinted_.size(), false);
}

void AdaptivePolicy::OnHints(int32_t layer, int32_t /*distance*/,
                             std::span<const float> scores,
                             absl::Time /*now*/) {
  const bool of_this_step = layer < shape_.num_layers;
  std::vector<float>& probabilities = of_this_step ? this_step_ : next_step_;
  const size_t first = shape_.Index({layer % shape_.num_layers, 0});
  for (size_t e = 0; e < scores.size(); ++e) {
    probabilities[first + e] = UnionProbability(scores[e]);
  }
  hinted_[static_cast<size_t>(layer)] = true;
}

void AdaptivePolicy::OnBeginLayer(int32_t layer,
                                  std::span<const ExpertNeed> needs,
                                  absl::Time now) {
  idle_.OnBeginLayer(tokens_, now);
  layer_ = layer;
  rates_.OnVisit(layer, needs, tokens_);
  Guard(layer, needs);
}

void AdaptivePolicy::OnMoreNeeds(int32_t layer,
                                 std::span<const ExpertNeed> needs,
                                 absl::Time /*now*/) {
  rates_.AddNeeds(layer, needs, tokens_);
  CountMisses(layer, needs);
}

void AdaptivePolicy::OnAccess(ExpertId id, AccessKind /*kind*/,
                              int32_t /*num_rows*/, absl::Time /*now*/) {
  uses_.Touch(id);
  float& cost = started_[shape_.Index(id)];
  if (cost > 0) account_ += 1 - cost;
  cost = 0;
}

void AdaptivePolicy::OnLoaded(ExpertId id, ReadClass read_class,
                              absl::Time now) {
  if (read_class == ReadClass::kDemand) idle_.OnDemandLoaded(now);
  uses_.Refresh(id);
}

// A speculative read that nothing has used.
void AdaptivePolicy::LoseRead(ExpertId id) {
  float& cost = started_[shape_.Index(id)];
  account_ -= cost;
  cost = 0;
}

void AdaptivePolicy::Guard(int32_t layer, std::span<const ExpertNeed> needs) {
  ++visits_;
  lru_misses_ *= kGuardMemory;
  own_misses_ *= kGuardMemory;
  CountMisses(layer, needs);
  const double margin = kHysteresis * lru_misses_;
  if (own_misses_ > lru_misses_ + margin) evicts_as_lru_ = true;
  if (own_misses_ < lru_misses_ - margin) evicts_as_lru_ = false;
  account_ *= kGuardMemory;
  if (account_ > kMaxDebt) pause_ = kPause;
  if (account_ < -kMaxDebt) {
    paused_until_ = visits_ + pause_;
    pause_ = std::min(2 * pause_, kLongestPause);
    account_ = 0;
  }
}

// What either way of evicting would have to load.
void AdaptivePolicy::CountMisses(int32_t layer,
                                 std::span<const ExpertNeed> needs) {
  lru_misses_ += lru_shadow_.Visit(layer, needs);
  own_misses_ += own_shadow_.Visit(
      layer, needs, [this](ExpertId id) -> double { return NextUse(id); });
}

float AdaptivePolicy::AnyVisit(size_t index) const {
  return std::max(
      kLeastProbability,
      UseProbability(rates_.rate(index) * static_cast<float>(next_tokens_),
                     next_tokens_));
}

float AdaptivePolicy::NextStep(ExpertId id, size_t index) const {
  const auto layer = static_cast<size_t>(shape_.num_layers + id.layer);
  return hinted_[layer] ? std::max(kLeastProbability, next_step_[index])
                        : AnyVisit(index);
}

float AdaptivePolicy::NextVisit(ExpertId id) const {
  const size_t index = shape_.Index(id);
  if (!IsAhead(id)) return NextStep(id, index);
  return hinted_[static_cast<size_t>(id.layer)] ? this_step_[index]
                                                : AnyVisit(index);
}

float AdaptivePolicy::NextUse(ExpertId id) const {
  const size_t index = shape_.Index(id);
  const auto cycle = static_cast<float>(shape_.num_layers);
  const bool ahead = IsAhead(id);
  const float later = AnyVisit(index);
  const float second = ahead ? NextStep(id, index) : later;
  auto distance = static_cast<float>(id.layer - layer_) + (ahead ? 0 : cycle);
  float unused = 1 - std::max(kLeastProbability, NextVisit(id));
  float next = distance / (1 - unused);
  for (const float probability : {second, later}) {
    distance += cycle;
    unused *= 1 - probability;
    next = std::min(next, distance / (1 - unused));
  }
  return next;
}

size_t AdaptivePolicy::ChooseVictim(std::span<const ExpertId> evictable,
                                    ExpertId /*incoming*/, absl::Time /*now*/) {
  if (evicts_as_lru_) return uses_.OldestOf(evictable);
  size_t victim = 0;
  float farthest = -1;
  for (size_t i = 0; i < evictable.size(); ++i) {
    const float next = NextUse(evictable[i]);
    if (next > farthest) {
      farthest = next;
      victim = i;
    }
  }
  return victim;
}

AdaptivePolicy::Candidate AdaptivePolicy::BestAbsent(
    std::span<const Residence> residence) const {
  Candidate best;
  float best_score = 0;
  for (const ExpertId id : shape_.owned) {
    if (residence[shape_.Index(id)] != Residence::kAbsent) continue;
    const int32_t visit = IsAhead(id) ? id.layer : shape_.num_layers + id.layer;
    if (!hinted_[static_cast<size_t>(visit)]) continue;
    const float probability = NextVisit(id);
    const float score =
        probability * sooner_[static_cast<size_t>(visit - layer_)];
    if (score > best_score) {
      best = {id, probability};
      best_score = score;
    }
  }
  return best;
}

std::optional<Prefetch> AdaptivePolicy::NextPrefetch(
    const PrefetchContext& context) {
  if (visits_ < paused_until_) return std::nullopt;
  const Candidate candidate = BestAbsent(context.residence);
  if (candidate.probability <= kLeastProbability) return std::nullopt;
  Prefetch prefetch{.id = candidate.id};
  double regret = 0;
  if (!context.has_free_slot) {
    prefetch.victim = context.evictable[ChooseVictim(
        context.evictable, candidate.id, context.now)];
    regret = kVictimsFault * NextVisit(*prefetch.victim);
  }
  const Price price = PriceOf(context.link, context.now);
  const double p = candidate.probability;
  if (p * price.won <= (1 - p) * price.delay + regret) return std::nullopt;
  started_[shape_.Index(candidate.id)] =
      static_cast<float>(price.delay + regret) + kLeastProbability;
  return prefetch;
}

// In units of one load: what the link does while it would be idle is won if the
// expert is used; demand that comes meanwhile waits for the chunk under way.
AdaptivePolicy::Price AdaptivePolicy::PriceOf(const LinkState& link,
                                              absl::Time now) const {
  const double load = absl::ToDoubleSeconds(link.LoadTime(shape_.expert_bytes));
  if (load <= 0) return {.won = 1, .delay = 0};
  const int64_t chunk =
      link.chunk_bytes > 0 ? link.chunk_bytes : shape_.expert_bytes;
  const double won = std::min(1.0, idle_.Left(tokens_, now) / load);
  return {.won = won,
          .delay = std::min(
              1 - won, absl::ToDoubleSeconds(link.LoadTime(chunk)) / load)};
}

}  // namespace

std::unique_ptr<CachePolicy> MakeAdaptivePolicy(const PolicyShape& shape) {
  return std::make_unique<AdaptivePolicy>(shape);
}

}  // namespace portolan
