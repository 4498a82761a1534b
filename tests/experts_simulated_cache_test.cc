#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <vector>

#include "experts/policy_lru.h"
#include "experts/simulated_cache.h"

namespace portolan {
namespace {

constexpr int64_t kExpertBytes = 1000;
constexpr int64_t kChunkBytes = 250;

// A load takes a second, a quarter for each chunk.
constexpr LinkSpec kLink{.bytes_per_second = 1000};

PolicyShape Shape(int32_t num_slots) {
  PolicyShape shape{.num_layers = 2,
                    .num_experts = 6,
                    .top_k = 2,
                    .num_slots = num_slots,
                    .expert_bytes = kExpertBytes};
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    for (int32_t expert = 0; expert < shape.num_experts; ++expert) {
      shape.owned.push_back({layer, expert});
    }
  }
  return shape;
}

// LRU that wants one expert ahead.
class EagerPolicy final : public CachePolicy {
 public:
  EagerPolicy(const PolicyShape& shape, ExpertId wish)
      : shape_(shape), lru_(MakeLruPolicy(shape)), wish_(wish) {}

  std::string_view name() const override { return "eager"; }
  size_t ChooseVictim(std::span<const ExpertId> evictable, ExpertId incoming,
                      absl::Time now) override {
    return lru_->ChooseVictim(evictable, incoming, now);
  }
  std::optional<Prefetch> NextPrefetch(
      const PrefetchContext& context) override {
    if (!context.has_free_slot ||
        context.residence[shape_.Index(wish_)] != Residence::kAbsent) {
      return std::nullopt;
    }
    return Prefetch{.id = wish_, .victim = std::nullopt};
  }

 private:
  const PolicyShape shape_;
  const std::unique_ptr<CachePolicy> lru_;
  const ExpertId wish_;
};

SimulatedCache MakeCache(int32_t num_slots, ExpertId wish) {
  const PolicyShape shape = Shape(num_slots);
  return SimulatedCache(shape, std::make_unique<EagerPolicy>(shape, wish),
                        kLink, kChunkBytes);
}

const std::vector<ExpertNeed> kOne = {{0, 1}};
const std::vector<ExpertNeed> kFive = {{0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 1}};

// Only two demand loads are given to the link at a time.
TEST(SimulatedCacheTest, WhileAnExpertIsComputedDemandGoesBeforeReadingAhead) {
  SimulatedCache cache = MakeCache(8, {1, 5});
  EXPECT_EQ(cache.Compute(0, kOne, absl::ZeroDuration()), absl::Seconds(1));

  // One chunk of what is read ahead is on the link; the four others come while
  // the first is computed.
  EXPECT_EQ(cache.Compute(0, kFive, absl::Seconds(4.25)), absl::ZeroDuration());
  EXPECT_EQ(cache.metrics().prefetch_bytes(), kExpertBytes);
}

TEST(SimulatedCacheTest, WithASlotForEveryExpertNothingIsDemanded) {
  SimulatedCache cache = MakeCache(12, {1, 5});
  cache.LoadAll();

  EXPECT_EQ(cache.Compute(0, kFive, absl::Seconds(1)), absl::ZeroDuration());
  EXPECT_EQ(cache.metrics().hits, 5);
  EXPECT_EQ(cache.metrics().demand_bytes, 0);
}

TEST(SimulatedCacheTest, WhatIsNeededWhileItIsReadAheadGoesBeforeOtherDemand) {
  SimulatedCache cache = MakeCache(8, {1, 5});
  cache.AdvanceTo(absl::UnixEpoch() + absl::Seconds(0.5));

  const std::vector<ExpertNeed> needs = {{4, 1}, {5, 1}};
  const absl::Duration stall = cache.Compute(1, needs, absl::ZeroDuration());

  EXPECT_EQ(stall, absl::Seconds(1.5));
  EXPECT_EQ(cache.metrics().late, 1);
  EXPECT_EQ(cache.metrics().misses, 1);
}

TEST(SimulatedCacheTest, TwoSlotsServeALayerInWaves) {
  SimulatedCache cache = MakeCache(2, {1, 5});

  const absl::Duration stall = cache.Compute(0, kFive, absl::Seconds(1));

  // The next load comes while one expert is computed.
  EXPECT_EQ(stall, absl::Seconds(1));
  EXPECT_EQ(cache.now(), absl::UnixEpoch() + absl::Seconds(6));
}

}  // namespace
}  // namespace portolan
