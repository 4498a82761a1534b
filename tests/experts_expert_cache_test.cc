#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "experts/expert_cache.h"
#include "experts/policy_lru.h"
#include "tests/experts_fake_source.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr int32_t kLayers = 3;
constexpr int32_t kExperts = 8;

PolicyShape Shape(int32_t num_slots) {
  PolicyShape shape{.num_layers = kLayers,
                    .num_experts = kExperts,
                    .top_k = 2,
                    .num_slots = num_slots,
                    .expert_bytes = kFakeSlotBytes,
                    .owned = {}};
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t expert = 0; expert < kExperts; ++expert) {
      shape.owned.push_back({layer, expert});
    }
  }
  return shape;
}

// LRU that reads ahead what the test asks for.
class ScriptedPolicy final : public CachePolicy {
 public:
  explicit ScriptedPolicy(const PolicyShape& shape)
      : lru_(MakeLruPolicy(shape)) {}

  std::string_view name() const override { return "scripted"; }
  void OnAccess(ExpertId id, AccessKind kind, int32_t num_rows,
                absl::Time now) override {
    lru_->OnAccess(id, kind, num_rows, now);
  }
  size_t ChooseVictim(std::span<const ExpertId> evictable, ExpertId incoming,
                      absl::Time now) override {
    return lru_->ChooseVictim(evictable, incoming, now);
  }
  // A hint score is a wish of the test.
  void OnHints(int32_t layer, int32_t, std::span<const float> scores,
               absl::Time) override {
    for (size_t expert = 0; expert < scores.size(); ++expert) {
      if (scores[expert] > 0) {
        wanted_.push_back({layer, static_cast<int32_t>(expert)});
      }
    }
  }
  std::optional<Prefetch> NextPrefetch(
      const PrefetchContext& context) override {
    while (!wanted_.empty()) {
      const ExpertId id = wanted_.front();
      const size_t index = static_cast<size_t>(id.layer) * kExperts +
                           static_cast<size_t>(id.expert);
      if (context.residence[index] != Residence::kAbsent) {
        wanted_.pop_front();
        continue;
      }
      Prefetch prefetch{.id = id, .victim = std::nullopt};
      if (!context.has_free_slot) prefetch.victim = context.evictable.front();
      wanted_.pop_front();
      return prefetch;
    }
    return std::nullopt;
  }

 private:
  std::unique_ptr<CachePolicy> lru_;
  std::deque<ExpertId> wanted_;
};

struct Harness {
  explicit Harness(int32_t num_slots, FakeSource::Options options = {},
                   int32_t staging_buffers = 4) {
    const PolicyShape shape = Shape(num_slots);
    auto owned_source = std::make_unique<FakeSource>(options);
    source = owned_source.get();
    cache = *ExpertCache::Create(
        {.slot_bytes = kFakeSlotBytes, .staging_buffers = staging_buffers},
        shape, std::make_unique<ScriptedPolicy>(shape),
        std::move(owned_source));
  }

  // Visits and returns the groups of experts in which they were computed.
  absl::StatusOr<std::vector<std::vector<int32_t>>> Visit(
      int layer, std::vector<int32_t> experts) {
    std::vector<ExpertNeed> needs;
    for (const int32_t expert : experts) needs.push_back({expert, 1});
    std::vector<std::vector<int32_t>> groups;
    const absl::Status status =
        cache->Visit(layer, needs, [&](std::span<const ReadyExpert> ready) {
          groups.emplace_back();
          for (const ReadyExpert& expert : ready) {
            const int32_t index =
                needs[static_cast<size_t>(expert.need)].expert;
            EXPECT_TRUE(HoldsExpert(expert.slot, {layer, index}));
            groups.back().push_back(index);
          }
          return absl::OkStatus();
        });
    if (!status.ok()) return status;
    return groups;
  }

  void Hint(int32_t layer, std::vector<int32_t> experts) {
    std::vector<float> scores(kExperts, 0);
    for (const int32_t expert : experts) {
      scores[static_cast<size_t>(expert)] = 1;
    }
    cache->OnHints(layer, 1, scores);
  }

  // As hints that come with the beginning of a step.
  void Foretell(int32_t layer, std::vector<int32_t> experts) {
    Hint(layer, std::move(experts));
    cache->ReadAhead();
  }

  FakeSource* source = nullptr;
  std::unique_ptr<ExpertCache> cache;
};

std::vector<int32_t> Flatten(const std::vector<std::vector<int32_t>>& groups) {
  std::vector<int32_t> all;
  for (const auto& group : groups)
    all.insert(all.end(), group.begin(), group.end());
  return all;
}

TEST(ExpertCacheTest, ComputesEveryNeedExactlyOnce) {
  Harness harness(6);

  const auto groups = harness.Visit(1, {0, 2, 5});

  ASSERT_TRUE(groups.ok());
  EXPECT_THAT(Flatten(*groups), UnorderedElementsAre(0, 2, 5));
  EXPECT_EQ(harness.cache->metrics().misses, 3);
}

TEST(ExpertCacheTest, AResidentExpertIsNotReadAgain) {
  Harness harness(6);
  ASSERT_TRUE(harness.Visit(1, {0, 2}).ok());

  const auto groups = harness.Visit(1, {0, 2});

  ASSERT_TRUE(groups.ok());
  EXPECT_THAT(*groups, ElementsAre(ElementsAre(0, 2)));
  EXPECT_EQ(harness.source->times_loaded({1, 0}), 1);
  EXPECT_EQ(harness.cache->metrics().hits, 2);
  EXPECT_EQ(harness.cache->metrics().demand_bytes, 2 * int64_t{kFakeSlotBytes});
}

TEST(ExpertCacheTest, ResidentExpertsAreComputedWhileTheOthersLoad) {
  Harness harness(6, {.hold = true});
  harness.source->Complete(2);
  ASSERT_TRUE(harness.Visit(0, {3}).ok());
  std::vector<int32_t> order;

  const std::vector<ExpertNeed> needs = {{1, 1}, {3, 1}};
  const absl::Status status =
      harness.cache->Visit(0, needs, [&](std::span<const ReadyExpert> ready) {
        order.push_back(ready[0].need);
        // The read of the other runs already; it may end from here on only.
        if (order.size() == 1) {
          harness.source->AwaitSubmitted(4);
          harness.source->Complete(2);
        }
        return absl::OkStatus();
      });

  ASSERT_TRUE(status.ok());
  EXPECT_THAT(order, ElementsAre(1, 0));
}

// The source is given two loads at a time; the third, too, goes before what is
// only foretold.
TEST(ExpertCacheTest, WhileAGroupIsComputedDemandGoesBeforeReadingAhead) {
  Harness harness(8, {.num_chunks = 1, .depth = 1, .hold = true});
  harness.source->Complete(1);
  ASSERT_TRUE(harness.Visit(0, {3}).ok());
  harness.Hint(1, {4});
  std::vector<ChunkRead> submitted;

  const std::vector<ExpertNeed> needs = {{0, 1}, {1, 1}, {2, 1}, {3, 1}};
  const absl::Status status =
      harness.cache->Visit(0, needs, [&](std::span<const ReadyExpert>) {
        if (submitted.empty()) {
          harness.source->Complete(2);
          submitted = harness.source->AwaitSubmitted(4);
          harness.source->Complete(2);
        }
        return absl::OkStatus();
      });

  ASSERT_TRUE(status.ok());
  EXPECT_EQ(submitted[3].id, (ExpertId{0, 2}));
  EXPECT_EQ(submitted[3].read_class, ReadClass::kDemand);
  EXPECT_EQ(harness.source->AwaitSubmitted(5)[4].id, (ExpertId{1, 4}));
}

TEST(ExpertCacheTest, TwoSlotsServeALayerInWaves) {
  Harness harness(2);

  const auto groups = harness.Visit(2, {0, 1, 2, 3, 4, 5, 6, 7});

  ASSERT_TRUE(groups.ok());
  EXPECT_THAT(Flatten(*groups), UnorderedElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_LE(harness.cache->counters().occupied_bytes_peak,
            2 * int64_t{kFakeSlotBytes});
  EXPECT_EQ(harness.cache->budget_bytes(), 2 * int64_t{kFakeSlotBytes});
}

TEST(ExpertCacheTest, ResidentBytesAreThoseOfLoadedExpertsNotOfAllSlots) {
  Harness harness(3);
  const auto resident = [&] {
    return harness.cache->counters().resident_bytes / int64_t{kFakeSlotBytes};
  };
  EXPECT_EQ(resident(), 0);

  ASSERT_TRUE(harness.Visit(0, {1}).ok());
  EXPECT_EQ(resident(), 1);
  ASSERT_TRUE(harness.Visit(0, {1, 2}).ok());
  EXPECT_EQ(resident(), 2);
  ASSERT_TRUE(harness.Visit(0, {3, 4, 5, 6}).ok());
  EXPECT_EQ(resident(), 3);
}

TEST(ExpertCacheTest, RoundsOfALayerAreCountedAsOneVisit) {
  Harness harness(6);
  const auto compute = [](std::span<const ReadyExpert>) {
    return absl::OkStatus();
  };
  const std::vector<ExpertNeed> first = {{0, 1}, {1, 1}};
  const std::vector<ExpertNeed> second = {{1, 2}, {2, 1}};

  ASSERT_TRUE(harness.cache->VisitRound({0, 0, 2}, first, compute).ok());
  ASSERT_TRUE(harness.cache->VisitRound({0, 1, 2}, second, compute).ok());

  EXPECT_EQ(harness.cache->metrics().accesses(), 3);
  EXPECT_EQ(harness.cache->metrics().misses, 3);
}

TEST(ExpertCacheTest, AVisitWithoutNeedsComputesNothing) {
  Harness harness(2);
  const auto groups = harness.Visit(0, {});
  ASSERT_TRUE(groups.ok());
  EXPECT_THAT(*groups, IsEmpty());
}

TEST(ExpertCacheTest, TheErrorOfComputeEndsTheVisitAndFreesItsLeases) {
  Harness harness(2);
  const std::vector<ExpertNeed> needs = {{0, 1}, {1, 1}, {2, 1}};

  const absl::Status status =
      harness.cache->Visit(0, needs, [](std::span<const ReadyExpert>) {
        return absl::InternalError("compute");
      });

  EXPECT_TRUE(absl::IsInternal(status));
  EXPECT_TRUE(harness.Visit(1, {0, 1, 2, 3}).ok());
}

TEST(ExpertCacheTest, StagedLoadsReachTheirSlot) {
  Harness harness(8, {.num_chunks = 4, .depth = 3, .staging = true},
                  /*staging_buffers=*/2);
  EXPECT_TRUE(harness.Visit(0, {0, 1, 2, 3, 4, 5, 6, 7}).ok());
}

TEST(ExpertCacheTest, LoadAllReadsEveryExpertOnceInFileOrder) {
  Harness harness(kLayers * kExperts, {.num_chunks = 1, .depth = 1});
  int64_t last = 0;

  const absl::Status status =
      harness.cache->LoadAll([&](int64_t done, int64_t total) {
        EXPECT_EQ(done, ++last);
        EXPECT_EQ(total, kLayers * kExperts);
      });

  ASSERT_TRUE(status.ok());
  EXPECT_EQ(last, kLayers * kExperts);
  const auto submitted = harness.source->AwaitSubmitted(kLayers * kExperts);
  for (size_t i = 1; i < submitted.size(); ++i) {
    EXPECT_LT(harness.source->FileOrder(submitted[i - 1].id),
              harness.source->FileOrder(submitted[i].id));
  }
  EXPECT_EQ(harness.cache->counters().start_logical_bytes,
            kLayers * kExperts * (int64_t{kFakeSlotBytes} - 1));
  EXPECT_THAT(*harness.Visit(1, {4, 6}), ElementsAre(ElementsAre(4, 6)));
  EXPECT_EQ(harness.cache->metrics().demand_bytes, 0);
}

// `pin`, say, wants experts before anything is needed.
TEST(ExpertCacheTest, WithASlotForEveryExpertNothingIsSpeculated) {
  Harness harness(kLayers * kExperts);
  harness.Foretell(1, {0, 1, 2});

  const absl::Status status = harness.cache->LoadAll([](int64_t, int64_t) {});

  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(harness.cache->metrics().prefetch_bytes(), 0);
  EXPECT_EQ(harness.source->times_loaded({1, 0}), 1);
}

TEST(ExpertCacheTest, ATransientErrorOfADemandReadIsTriedAgain) {
  Harness harness(4);
  harness.source->Fail({0, 1}, absl::UnavailableError("EIO"), 2);

  const auto groups = harness.Visit(0, {1});

  EXPECT_TRUE(groups.ok());
  EXPECT_GE(harness.cache->counters().retries, 1);
}

TEST(ExpertCacheTest, AnErrorThatStaysEndsTheVisitAfterBoundedAttempts) {
  Harness harness(4, {.num_chunks = 1});
  harness.source->Fail({0, 1}, absl::UnavailableError("EIO of disk"), 1000);

  const auto groups = harness.Visit(0, {0, 1});

  ASSERT_TRUE(absl::IsUnavailable(groups.status()));
  EXPECT_THAT(std::string(groups.status().message()), HasSubstr("EIO of disk"));
  EXPECT_EQ(harness.cache->counters().retries, 2);
}

TEST(ExpertCacheTest, DataLossIsNotTriedAgainAndLeavesNoTrace) {
  Harness harness(2, {.num_chunks = 1});
  harness.source->Fail({0, 1}, absl::DataLossError("truncated"), 1);

  EXPECT_TRUE(absl::IsDataLoss(harness.Visit(0, {1}).status()));

  EXPECT_EQ(harness.cache->counters().retries, 0);
  EXPECT_TRUE(harness.Visit(0, {0, 1, 2, 3}).ok());
}

TEST(ExpertCacheTest, AForetoldExpertIsAHit) {
  Harness harness(6);
  harness.Foretell(1, {4});
  while (harness.source->times_loaded({1, 4}) == 0) std::this_thread::yield();
  while (harness.cache->metrics().prefetch_resident_bytes == 0) {
    std::this_thread::yield();
  }

  ASSERT_TRUE(harness.Visit(1, {4}).ok());

  const ExpertMetrics metrics = harness.cache->metrics();
  EXPECT_EQ(metrics.hits, 1);
  EXPECT_EQ(metrics.prefetch_used_bytes, int64_t{kFakeSlotBytes});
  EXPECT_EQ(metrics.demand_bytes, 0);
}

TEST(ExpertCacheTest, ADemandReadOvertakesASpeculativeOneBetweenTwoChunks) {
  Harness harness(6, {.num_chunks = 4, .depth = 4, .hold = true});
  harness.Foretell(1, {4});
  harness.source->AwaitSubmitted(1);

  std::jthread visit([&] { EXPECT_TRUE(harness.Visit(0, {0}).ok()); });
  const auto submitted = harness.source->AwaitSubmitted(4);
  harness.source->Complete(8);
  visit.join();

  EXPECT_EQ(submitted[0].id, (ExpertId{1, 4}));
  EXPECT_EQ(submitted[0].read_class, ReadClass::kSpeculative);
  for (size_t i = 1; i < 4; ++i) {
    EXPECT_EQ(submitted[i].id, (ExpertId{0, 0}));
    EXPECT_EQ(submitted[i].read_class, ReadClass::kDemand);
  }
}

TEST(ExpertCacheTest, HintsThatComeWithALayerWaitForItsOwnDemand) {
  Harness harness(6, {.num_chunks = 2, .depth = 1, .hold = true});
  harness.Hint(1, {4});

  std::jthread visit([&] { EXPECT_TRUE(harness.Visit(0, {0}).ok()); });
  harness.source->Complete(4);
  const auto submitted = harness.source->AwaitSubmitted(4);
  visit.join();

  EXPECT_EQ(submitted[0].id, (ExpertId{0, 0}));
  EXPECT_EQ(submitted[1].id, (ExpertId{0, 0}));
  EXPECT_EQ(submitted[2].id, (ExpertId{1, 4}));
  EXPECT_EQ(submitted[2].read_class, ReadClass::kSpeculative);
}

TEST(ExpertCacheTest, ANeededExpertThatIsOnItsWayIsLateAndReadOnce) {
  Harness harness(6, {.num_chunks = 4, .depth = 4, .hold = true});
  harness.Foretell(1, {4});
  harness.source->AwaitSubmitted(1);

  std::jthread visit([&] { EXPECT_TRUE(harness.Visit(1, {4}).ok()); });
  const auto submitted = harness.source->AwaitSubmitted(3);
  harness.source->Complete(4);
  visit.join();

  EXPECT_EQ(submitted[1].read_class, ReadClass::kDemand);
  EXPECT_EQ(harness.source->times_loaded({1, 4}), 1);
  EXPECT_EQ(harness.cache->metrics().late, 1);
}

TEST(ExpertCacheTest, SpeculationNeverHoldsTheLastTwoSlots) {
  Harness harness(3);
  harness.Foretell(2, {0, 1, 2, 3});
  while (harness.cache->metrics().prefetch_resident_bytes == 0) {
    std::this_thread::yield();
  }

  ASSERT_TRUE(harness.Visit(0, {0, 1}).ok());

  EXPECT_EQ(harness.cache->metrics().prefetch_resident_bytes,
            int64_t{kFakeSlotBytes});
  EXPECT_EQ(harness.cache->metrics().prefetch_wasted_bytes, 0);
}

TEST(ExpertCacheTest, WithTwoSlotsNothingIsSpeculated) {
  Harness harness(2);
  harness.Foretell(2, {0, 1});
  ASSERT_TRUE(harness.Visit(0, {0, 1}).ok());
  EXPECT_EQ(harness.cache->metrics().prefetch_bytes(), 0);
}

TEST(ExpertCacheTest, AFailedSpeculativeReadHarmsNobody) {
  Harness harness(6, {.num_chunks = 1});
  harness.source->Fail({1, 4}, absl::UnavailableError("EIO"), 1);
  harness.Foretell(1, {4});
  while (harness.cache->counters().failed_speculative == 0) {
    std::this_thread::yield();
  }

  const auto groups = harness.Visit(1, {4, 5});

  EXPECT_TRUE(groups.ok());
  EXPECT_EQ(harness.source->times_loaded({1, 4}), 1);
}

TEST(ExpertCacheTest, AFailedSpeculativeReadDoesNotStopOthers) {
  Harness harness(6, {.num_chunks = 1});
  harness.source->Fail({1, 4}, absl::UnavailableError("EIO"), 1);
  harness.Foretell(1, {4});
  while (harness.cache->counters().failed_speculative == 0) {
    std::this_thread::yield();
  }

  harness.Foretell(1, {4, 5});

  while (harness.source->times_loaded({1, 5}) == 0) std::this_thread::yield();
  EXPECT_EQ(harness.source->times_loaded({1, 4}), 0);
}

TEST(ExpertCacheTest, ClosesWithReadsUnderWay) {
  auto harness = std::make_unique<Harness>(
      6, FakeSource::Options{.num_chunks = 4, .depth = 4, .hold = true});
  harness->Foretell(1, {4, 5, 6});
  harness->source->AwaitSubmitted(1);
  harness->source->Complete(100);

  harness.reset();
}

void ExpectAllComputed(Harness& harness) {
  std::vector<int32_t> all(kExperts);
  std::iota(all.begin(), all.end(), 0);
  for (int layer = 0; layer < kLayers; ++layer) {
    const auto groups = harness.Visit(layer, all);
    ASSERT_TRUE(groups.ok()) << groups.status();
    EXPECT_THAT(Flatten(*groups), ::testing::UnorderedElementsAreArray(all));
  }
}

// What came from the source is what the metrics tell, once the last read ahead
// is in.
void ExpectLoadsAreCounted(Harness& harness) {
  const auto counted = [&] {
    const ExpertMetrics metrics = harness.cache->metrics();
    return (metrics.demand_bytes + metrics.prefetch_bytes()) /
           int64_t{kFakeSlotBytes};
  };
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (counted() != harness.source->loads() && absl::Now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_EQ(counted(), harness.source->loads());
}

// Eight threads visit random layers while reads fail now and then: every need
// is computed once with its own weights, or the visit ends with the error.
TEST(ExpertCacheTest, KeepsItsInvariantsUnderStress) {
  for (const int32_t num_slots : {2, 5, 12}) {
    Harness harness(
        num_slots,
        {.num_chunks = 4, .depth = 3, .speculative_depth = 2, .staging = true},
        /*staging_buffers=*/2);
    std::atomic<int64_t> needed = 0;
    std::vector<std::jthread> threads;
    for (uint32_t seed = 0; seed < 8; ++seed) {
      threads.emplace_back([&, seed] {
        std::mt19937 random(seed);
        for (int round = 0; round < 150; ++round) {
          const int layer = static_cast<int>(random() % kLayers);
          std::vector<int32_t> experts;
          for (int32_t expert = 0; expert < kExperts; ++expert) {
            if (random() % 3 == 0) experts.push_back(expert);
          }
          const ExpertId victim{layer,
                                static_cast<int32_t>(random() % kExperts)};
          switch (random() % 8) {
            case 0:
              harness.source->Fail(victim, absl::UnavailableError("EIO"), 2);
              break;
            case 1:
              harness.source->Fail(victim, absl::DataLossError("bad"), 1);
              break;
            default:
              harness.Foretell(static_cast<int32_t>(random() % kLayers),
                               {static_cast<int32_t>(random() % kExperts)});
          }

          const auto groups = harness.Visit(layer, experts);
          needed += std::ssize(experts);

          if (groups.ok()) {
            EXPECT_THAT(Flatten(*groups),
                        ::testing::UnorderedElementsAreArray(experts));
          } else {
            EXPECT_TRUE(absl::IsUnavailable(groups.status()) ||
                        absl::IsDataLoss(groups.status()));
          }
        }
      });
    }
    threads.clear();
    const ExpertMetrics metrics = harness.cache->metrics();
    EXPECT_EQ(metrics.hits + metrics.late + metrics.misses, needed);
    EXPECT_EQ(harness.source->double_reads(), 0);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      for (int32_t expert = 0; expert < kExperts; ++expert) {
        harness.source->Fail({layer, expert}, absl::OkStatus(), 0);
      }
    }
    // Nothing is left leased or half read: every expert has its turn.
    ExpectAllComputed(harness);
    ExpectLoadsAreCounted(harness);
    EXPECT_LE(harness.cache->counters().occupied_bytes_peak,
              harness.cache->budget_bytes());
  }
}

}  // namespace
}  // namespace portolan
