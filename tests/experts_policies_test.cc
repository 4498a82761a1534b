#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <set>
#include <vector>

#include "experts/history.h"
#include "experts/policies.h"
#include "experts/shadow_cache.h"
#include "experts/simulated_cache.h"

namespace portolan {
namespace {

constexpr absl::Time kNow = absl::UnixEpoch();
constexpr int32_t kLayers = 4;
constexpr int32_t kExperts = 8;

PolicyShape Shape(int32_t num_slots) {
  PolicyShape shape{.num_layers = kLayers,
                    .num_experts = kExperts,
                    .top_k = 2,
                    .num_slots = num_slots,
                    .expert_bytes = 100000};
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t e = 0; e < kExperts; ++e) shape.owned.push_back({layer, e});
  }
  return shape;
}

HistoryShape ShapeOfHistory() {
  return {.num_layers = kLayers,
          .num_experts = kExperts,
          .top_k = 2,
          .hidden = 4,
          .iterations = 4,
          .sequences = 4,
          .token_ids = 16};
}

// A policy with a cache that only it fills.
class Bench {
 public:
  Bench(std::string_view name, int32_t num_slots,
        const History* history = nullptr)
      : shape_(Shape(num_slots)),
        policy_(MakePolicy(name, shape_, history)),
        residence_(shape_.num_ids(), Residence::kAbsent) {
    policy_->OnBeginStep(1, kNow);
  }

  CachePolicy& policy() { return *policy_; }

  void Load(ExpertId id, ReadClass read_class = ReadClass::kDemand) {
    residence_[shape_.Index(id)] = Residence::kResident;
    residents_.push_back(id);
    policy_->OnLoaded(id, read_class, kNow);
  }

  void Use(ExpertId id, int32_t rows = 1) {
    const ExpertNeed need{.expert = id.expert, .num_rows = rows};
    policy_->OnBeginLayer(id.layer, {&need, 1}, kNow);
    policy_->OnAccess(id, AccessKind::kHit, rows, kNow);
    policy_->OnEndLayer(id.layer, absl::ZeroDuration(), kNow);
  }

  void Hint(int32_t layer, int32_t distance, std::vector<float> scores) {
    scores.resize(kExperts, 0.0f);
    policy_->OnHints(layer, distance, scores, kNow);
  }

  ExpertId Victim(ExpertId incoming) {
    return residents_[policy_->ChooseVictim(residents_, incoming, kNow)];
  }

  std::optional<ExpertId> Wish() {
    const auto prefetch =
        policy_->NextPrefetch({.now = kNow,
                               .link = {.bytes_per_second = 1e9},
                               .residence = residence_,
                               .evictable = residents_,
                               .has_free_slot = true});
    return prefetch ? std::optional(prefetch->id) : std::nullopt;
  }

 private:
  const PolicyShape shape_;
  const std::unique_ptr<CachePolicy> policy_;
  std::vector<Residence> residence_;
  std::vector<ExpertId> residents_;
};

TEST(AllLayerPolicyTest, WantsEveryExpertOfTheNextLayerAndWrapsAround) {
  Bench bench("all-layer", 32);
  bench.Use({kLayers - 1, 0});

  std::set<int32_t> wanted;
  while (const auto id = bench.Wish()) {
    EXPECT_EQ(id->layer, 0);
    wanted.insert(id->expert);
    bench.Load(*id, ReadClass::kSpeculative);
  }

  EXPECT_EQ(wanted.size(), size_t{kExperts});
}

TEST(AllLayerPolicyTest, GivesUpWhatCameFirstHoweverFreshlyUsed) {
  Bench bench("all-layer", 4);
  bench.Load({0, 1});
  bench.Load({0, 2});
  bench.Use({0, 1});

  EXPECT_EQ(bench.Victim({1, 0}), (ExpertId{0, 1}));
}

TEST(LruPolicyTest, GivesUpWhatWasUsedLongestAgo) {
  Bench bench("lru", 4);
  bench.Load({0, 1});
  bench.Load({0, 2});
  bench.Use({0, 1});

  EXPECT_EQ(bench.Victim({1, 0}), (ExpertId{0, 2}));
  EXPECT_EQ(bench.Wish(), std::nullopt);
}

TEST(LfuPolicyTest, GivesUpWhatWasUsedLeastOften) {
  Bench bench("lfu", 4);
  bench.Load({0, 1});
  bench.Load({0, 2});
  for (int i = 0; i < 3; ++i) bench.Use({0, 1});
  bench.Use({0, 2});

  EXPECT_EQ(bench.Victim({1, 0}), (ExpertId{0, 2}));
}

TEST(Gate1PolicyTest, ALayerThatHasItsShareGivesUpItsOwn) {
  Bench bench("gate-1", 2 * kLayers);
  bench.Load({0, 1});
  bench.Load({1, 1});
  bench.Load({1, 2});
  bench.Use({1, 1});
  bench.Use({1, 2});

  // Expert (0, 1) is older, but layer 1 has its two slots.
  EXPECT_EQ(bench.Victim({1, 3}), (ExpertId{1, 1}));
  EXPECT_TRUE(bench.policy().notice().empty());
}

TEST(Gate1PolicyTest, WithTooFewSlotsOneOrderServesAllLayersAndItSaysSo) {
  Bench bench("gate-1", 2 * kLayers - 1);
  bench.Load({0, 1});
  bench.Load({1, 1});
  bench.Load({1, 2});

  EXPECT_EQ(bench.Victim({1, 3}), (ExpertId{0, 1}));
  EXPECT_FALSE(bench.policy().notice().empty());
}

TEST(GatePolicyTest, ReadsWhatMostTokensAreForetoldToChoose) {
  for (const char* name : {"gate-1", "gate-2"}) {
    Bench bench(name, 8);
    bench.Hint(2, 1, {0, 1, 0, 3});

    EXPECT_EQ(bench.Wish(), (ExpertId{2, 3})) << name;
  }
}

TEST(EamPolicyTest, OfEqualRatiosReadsTheNearerLayerFirst) {
  Bench bench("eam", 8);
  bench.Use({0, 0});
  bench.Hint(3, 3, {0, 0.5f});
  bench.Hint(1, 1, {0, 0, 0.5f});

  EXPECT_EQ(bench.Wish(), (ExpertId{1, 2}));
}

TEST(EamPolicyTest, PriorityIsTheRatioWeightedDownByDistance) {
  // (1 - 1/5) * 0.5 = 0.4 for the next layer, (1 - 3/5) * 0.9 = 0.36 for the
  // last; at 1.1 the last one wins by 0.44.
  for (const float ratio : {0.9f, 1.1f}) {
    Bench bench("eam", 8);
    bench.Use({0, 0});
    bench.Hint(1, 1, {0.5f});
    bench.Hint(3, 3, {ratio});

    EXPECT_EQ(bench.Wish()->layer, ratio < 1 ? 1 : 3);
  }
}

TEST(EamPolicyTest, GivesUpTheSmallestActivationRatio) {
  Bench bench("eam", 4);
  bench.Load({0, 1});
  bench.Load({0, 2});
  bench.Use({0, 1}, 5);
  bench.Use({0, 2}, 1);

  EXPECT_EQ(bench.Victim({1, 0}), (ExpertId{0, 2}));
}

TEST(PinPolicyTest, EverySequenceOfTheProfileCountsTheSame) {
  History history(ShapeOfHistory());
  std::ranges::fill(history.popularity(), 0.0f);
  history.popularity()[2] = 1.0f;  // of late, but not in what is stored
  std::vector<float> map(history.popularity().size(), 0.0f);
  map[1] = 1;  // expert 1 of layer 0
  const std::vector<float> context = {1, 1, 1, 1};
  history.sequences().Add(context, {map, kLayers, kExperts});
  Bench bench("pin", 4, &history);
  bench.Load({0, 1});
  bench.Load({0, 2});

  EXPECT_EQ(bench.Victim({1, 0}), (ExpertId{0, 2}));
}

TEST(PinPolicyTest, KeepsTheHottestOfTheProfile) {
  History history(ShapeOfHistory());
  std::ranges::fill(history.popularity(), 0.0f);
  history.popularity()[1] = 1.0f;  // expert 1 of layer 0
  Bench bench("pin", 4, &history);
  bench.Load({0, 1});
  bench.Load({3, 2});
  for (int i = 0; i < 5; ++i) bench.Use({3, 2});

  EXPECT_EQ(bench.Victim({1, 0}), (ExpertId{3, 2}));
}

TEST(PinPolicyTest, WithoutAProfileIsLruAndSaysSo) {
  Bench bench("pin", 4);
  bench.Load({0, 1});
  bench.Load({0, 2});
  bench.Use({0, 1});

  EXPECT_EQ(bench.Victim({1, 0}), (ExpertId{0, 2}));
  EXPECT_FALSE(bench.policy().notice().empty());
}

TEST(FmoePolicyTest, ReadsByProbabilityOverDistance) {
  Bench bench("fmoe", 8);
  bench.Use({0, 0});
  bench.Hint(1, 1, {0, HintOf({0.3f, true})});
  bench.Hint(3, 3, {0, 0, HintOf({0.8f, true})});  // 0.8 / 3 < 0.3

  EXPECT_EQ(bench.Wish(), (ExpertId{1, 1}));
}

TEST(FmoePolicyTest, ReadsOnlyWhatAMapSelects) {
  Bench bench("fmoe", 8);
  bench.Use({0, 0});
  bench.Hint(1, 1, {0, HintOf({0.4f, false}), HintOf({0.1f, true})});

  EXPECT_EQ(bench.Wish(), (ExpertId{1, 2}));
}

TEST(FmoePolicyTest, GivesUpTheSmallestProbabilityTimesAccesses) {
  Bench bench("fmoe", 8);
  bench.Load({1, 1});
  bench.Load({1, 2});
  bench.Hint(1, 1, {0, HintOf({0.9f, true}), HintOf({0.2f, true})});
  bench.Use({1, 1});                              // 0.9 * 1
  for (int i = 0; i < 5; ++i) bench.Use({1, 2});  // 0.2 * 5

  EXPECT_EQ(bench.Victim({2, 0}), (ExpertId{1, 1}));
}

TEST(FmoePolicyTest, ProbabilityOfTheWholeRowDecidesWhoStays) {
  Bench bench("fmoe", 8);
  for (const int32_t expert : {1, 2, 3}) {
    bench.Load({1, expert});
    bench.Use({1, expert});
  }
  bench.Hint(
      1, 1,
      {0, HintOf({0.1f, false}), HintOf({0.02f, false}), HintOf({0.7f, true})});

  EXPECT_EQ(bench.Victim({2, 0}), (ExpertId{1, 2}));
}

TEST(FmoePolicyTest, TheLargestProbabilityOfTheRanksCounts) {
  Bench bench("fmoe", 8);

  EXPECT_EQ(bench.policy().hint_merge(), HintMerge::kMax);
}

TEST(AdaptivePolicyTest, WithoutHintsReadsNothing) {
  Bench bench("adaptive", 8);
  for (int i = 0; i < 20; ++i) bench.Use({i % kLayers, 1});

  EXPECT_EQ(bench.Wish(), std::nullopt);
}

TEST(AdaptivePolicyTest, KeepsWhatIsForetoldOverWhatWasUsedLast) {
  Bench bench("adaptive", 4);
  bench.Load({2, 1});
  bench.Load({2, 2});
  bench.Use({2, 2});
  bench.policy().OnBeginStep(1, kNow);
  bench.Hint(2, 3, {0, HintOf(0.9f), HintOf(0.01f)});

  EXPECT_EQ(bench.Victim({0, 0}), (ExpertId{2, 2}));
}

TEST(AdaptivePolicyTest, GivesUpTheJustUsedBeforeTheEquallyLikelyAhead) {
  Bench bench("adaptive", 4);
  bench.Load({0, 1});
  bench.Load({1, 1});
  for (int i = 0; i < 8; ++i) {
    for (int32_t layer = 0; layer < kLayers; ++layer) bench.Use({layer, 1});
  }
  bench.policy().OnBeginStep(1, kNow);
  bench.Use({0, 1});

  EXPECT_EQ(bench.Victim({0, 2}), (ExpertId{0, 1}));
}

// Runs `steps` steps of random needs; `foretell` says what the hints claim.
absl::Duration StallUnder(std::string_view policy, int steps, int64_t* wasted,
                          float claim) {
  SimulatedCache cache(Shape(8), MakePolicy(policy, Shape(8), nullptr),
                       *ParseLinkSpec("1GB/s,50us"), 40000);
  std::mt19937 random(3);
  absl::Duration stall;
  for (int step = 0; step < steps; ++step) {
    cache.driver().BeginStep(1, cache.now());
    std::vector<std::vector<ExpertNeed>> needs(kLayers);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      const auto first = static_cast<int32_t>(random() % (kExperts - 2));
      needs[static_cast<size_t>(layer)] = {{first, 1}, {first + 1, 1}};
      // Whatever comes, the hints swear by an expert that does not.
      std::vector<float> scores(kExperts, 0.0f);
      scores[static_cast<size_t>(first + 2)] = HintOf(claim);
      cache.driver().OnHints(layer, layer + 1, scores, cache.now());
    }
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      cache.AdvanceTo(cache.now() + absl::Microseconds(80));
      stall += cache.Compute(layer, needs[static_cast<size_t>(layer)],
                             absl::Microseconds(10));
    }
  }
  *wasted = cache.driver().metrics().prefetch_wasted_bytes;
  return stall;
}

std::vector<ExpertNeed> FirstExperts(int32_t count) {
  std::vector<ExpertNeed> needs;
  for (int32_t e = 0; e < count; ++e) needs.push_back({e, 1});
  return needs;
}

// Misses of `rounds` rounds over all layers, after a first round.
int32_t CyclicMisses(int32_t num_slots, int32_t per_layer, int rounds,
                     absl::FunctionRef<double(ExpertId, int64_t)> next_use) {
  const PolicyShape shape = Shape(num_slots);
  ShadowCache shadow(shape);
  int32_t misses = 0;
  int64_t visit = 0;
  for (int round = 0; round <= rounds; ++round) {
    for (int32_t layer = 0; layer < kLayers; ++layer, ++visit) {
      const int32_t missed =
          shadow.Visit(layer, FirstExperts(per_layer),
                       [&](ExpertId id) { return next_use(id, visit); });
      if (round > 0) misses += missed;
    }
  }
  return misses;
}

// Of an expert that each round needs: visits since it was needed.
int64_t Age(ExpertId id, int64_t visit) {
  return (visit - id.layer + kLayers) % kLayers;
}

TEST(ShadowCacheTest, InOrderOfUseACycleLargerThanTheCacheNeverHits) {
  const auto least_recent = [](ExpertId id, int64_t visit) {
    return static_cast<double>(Age(id, visit) - 100);
  };
  EXPECT_EQ(CyclicMisses(6, 2, 10, least_recent), 10 * kLayers * 2);
  EXPECT_EQ(CyclicMisses(8, 2, 10, least_recent), 0);
}

TEST(ShadowCacheTest, ALayerTakesTheSlotsOfItsOwnComputedExperts) {
  const auto next_use = [](ExpertId id, int64_t visit) {
    return static_cast<double>(kLayers - Age(id, visit));
  };
  // Each slot keeps one expert for the next round, and lends itself meanwhile.
  EXPECT_EQ(CyclicMisses(8, 6, 10, next_use), 10 * (kLayers * 6 - 8));
}

TEST(LruShadowTest, MissesWhatLruMissesWhateverTheStepsNeed) {
  for (const int32_t slots : {4, 8, 16}) {
    for (const int32_t per_layer : {1, 2, 5}) {
      const PolicyShape shape = Shape(slots);
      SimulatedCache cache(shape, MakePolicy("lru", shape, nullptr),
                           *ParseLinkSpec("1GB/s,50us"), 100000);
      LruShadow shadow(shape);
      std::mt19937 random(static_cast<unsigned>(slots + per_layer));
      // Some experts are needed more often than others.
      std::geometric_distribution<int32_t> popular(0.3);
      int64_t misses = 0;
      for (int step = 0; step < 300; ++step) {
        cache.driver().BeginStep(per_layer, cache.now());
        for (int32_t layer = 0; layer < kLayers; ++layer) {
          std::set<int32_t> chosen;
          while (std::ssize(chosen) < per_layer) {
            chosen.insert(popular(random) % kExperts);
          }
          std::vector<ExpertNeed> needs;
          for (const int32_t expert : chosen) {
            needs.push_back({.expert = expert, .num_rows = 1});
          }
          misses += shadow.Visit(layer, needs);
          cache.Compute(layer, needs, absl::Microseconds(10));
        }
      }
      const ExpertMetrics metrics = cache.driver().metrics();

      EXPECT_NEAR(static_cast<double>(misses),
                  static_cast<double>(metrics.misses + metrics.late),
                  0.01 * static_cast<double>(metrics.misses))
          << slots << " slots, " << per_layer << " experts a layer";
    }
  }
}

// Hits over needs of steps that need `per_layer` experts of each layer.
double HitRateOfBatches(std::string_view policy, int32_t num_slots,
                        int32_t per_layer) {
  SimulatedCache cache(Shape(num_slots),
                       MakePolicy(policy, Shape(num_slots), nullptr),
                       *ParseLinkSpec("1GB/s,50us"), 40000);
  for (int step = 0; step < 200; ++step) {
    cache.driver().BeginStep(per_layer, cache.now());
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      cache.Compute(layer, FirstExperts(per_layer), absl::Microseconds(10));
    }
  }
  return cache.driver().metrics().HitRate();
}

TEST(AdaptivePolicyTest, KeepsWhatFitsOfAStepThatNeedsMoreThanTheSlots) {
  EXPECT_EQ(HitRateOfBatches("lru", 8, 6), 0);
  EXPECT_GT(HitRateOfBatches("adaptive", 8, 6), 0.2);
}

TEST(AdaptiveGuardTest, HintsThatLieCostNoMoreThanNoise) {
  int64_t wasted = 0;
  constexpr int kSteps = 2000;
  const absl::Duration lru = StallUnder("lru", kSteps, &wasted, 0.99f);

  const absl::Duration adaptive =
      StallUnder("adaptive", kSteps, &wasted, 0.99f);

  EXPECT_LE(adaptive, 1.02 * lru);
  // Speculation stopped: a believer would have read one expert a layer.
  EXPECT_LT(wasted, kSteps * kLayers * int64_t{100000} / 4);
}

}  // namespace
}  // namespace portolan
