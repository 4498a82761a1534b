#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "experts/policy_driver.h"
#include "experts/policy_lru.h"

namespace portolan {
namespace {

using ::testing::Eq;
using ::testing::Optional;

constexpr absl::Time kNow = absl::UnixEpoch();
constexpr int64_t kExpertBytes = 100;

PolicyShape Shape(int32_t num_slots) {
  PolicyShape shape{.num_layers = 2,
                    .num_experts = 4,
                    .top_k = 1,
                    .num_slots = num_slots,
                    .expert_bytes = kExpertBytes};
  for (int32_t layer = 0; layer < 2; ++layer) {
    for (int32_t expert = 0; expert < 4; ++expert) {
      shape.owned.push_back({layer, expert});
    }
  }
  return shape;
}

// Always wants `next`, and the first evictable expert for it.
class EagerPolicy final : public CachePolicy {
 public:
  explicit EagerPolicy(ExpertId next) : next_(next) {}
  std::string_view name() const override { return "eager"; }
  size_t ChooseVictim(std::span<const ExpertId>, ExpertId,
                      absl::Time) override {
    return 0;
  }
  std::optional<Prefetch> NextPrefetch(
      const PrefetchContext& context) override {
    Prefetch prefetch{.id = next_};
    if (!context.has_free_slot) prefetch.victim = context.evictable.front();
    return prefetch;
  }

 private:
  ExpertId next_;
};

void Load(PolicyDriver& driver, ExpertId id,
          ReadClass read_class = ReadClass::kDemand) {
  driver.OnLoadStarted(id, read_class);
  driver.OnLoaded(id, kNow);
}

void Need(PolicyDriver& driver, ExpertId id) {
  const ExpertNeed need{.expert = id.expert, .num_rows = 1};
  driver.BeginLayer(id.layer, {&need, 1}, kNow);
}

TEST(PolicyDriverTest, TellsHitsLateOnesAndMissesApart) {
  PolicyDriver driver(Shape(4), MakeLruPolicy(Shape(4)));
  Load(driver, {0, 1});
  driver.OnLoadStarted({0, 2}, ReadClass::kSpeculative);
  const std::vector<ExpertNeed> needs = {{1, 1}, {2, 1}, {3, 1}};

  driver.BeginLayer(0, needs, kNow);

  EXPECT_EQ(driver.metrics().hits, 1);
  EXPECT_EQ(driver.metrics().late, 1);
  EXPECT_EQ(driver.metrics().misses, 1);
}

TEST(PolicyDriverTest, CountsBytesByWhatBecameOfThem) {
  PolicyDriver driver(Shape(6), MakeLruPolicy(Shape(6)));
  Load(driver, {0, 0});
  Load(driver, {0, 1}, ReadClass::kSpeculative);
  Load(driver, {0, 2}, ReadClass::kSpeculative);
  Load(driver, {0, 3}, ReadClass::kSpeculative);

  Need(driver, {0, 1});
  driver.EndLayer(0, absl::ZeroDuration(), kNow);
  driver.OnEvicted({0, 2}, kNow);

  EXPECT_EQ(driver.metrics().demand_bytes, kExpertBytes);
  EXPECT_EQ(driver.metrics().prefetch_used_bytes, kExpertBytes);
  EXPECT_EQ(driver.metrics().prefetch_wasted_bytes, kExpertBytes);
  EXPECT_EQ(driver.metrics().prefetch_resident_bytes, kExpertBytes);
  EXPECT_EQ(driver.metrics().prefetches_used, 1);
  EXPECT_EQ(driver.metrics().prefetches_late, 0);
  EXPECT_EQ(driver.metrics().prefetches_wasted, 1);
}

TEST(PolicyDriverTest, CountsALatePrefetchOnceAndAsUsed) {
  PolicyDriver driver(Shape(4), MakeLruPolicy(Shape(4)));
  driver.OnLoadStarted({0, 1}, ReadClass::kSpeculative);

  Need(driver, {0, 1});
  driver.OnLoaded({0, 1}, kNow);

  EXPECT_EQ(driver.metrics().prefetch_used_bytes, kExpertBytes);
  EXPECT_EQ(driver.metrics().prefetch_bytes(), kExpertBytes);
  EXPECT_EQ(driver.metrics().demand_bytes, 0);
  EXPECT_EQ(driver.metrics().prefetches_late, 1);
  EXPECT_EQ(driver.metrics().prefetches_used, 0);
}

// The rows of a layer may come in several rounds.
TEST(PolicyDriverTest, AnExpertCountsOnceForALayerHoweverManyRoundsNeedIt) {
  PolicyDriver driver(Shape(4), MakeLruPolicy(Shape(4)));
  const std::vector<ExpertNeed> first = {{0, 1}, {1, 1}};
  const std::vector<ExpertNeed> second = {{1, 2}, {2, 1}};

  driver.BeginLayer(0, first, kNow);
  Load(driver, {0, 0});
  Load(driver, {0, 1});
  driver.EndRound(absl::Seconds(2));
  driver.ContinueLayer(0, second, kNow);
  driver.EndLayer(0, absl::Seconds(1), kNow);

  EXPECT_EQ(driver.metrics().misses, 3);
  EXPECT_EQ(driver.metrics().hits, 0);
  EXPECT_EQ(driver.metrics().stall, absl::Seconds(3));
  driver.BeginLayer(0, first, kNow);
  EXPECT_EQ(driver.metrics().hits, 2);
}

TEST(PolicyDriverTest, AFailedReadCountsNoBytes) {
  PolicyDriver driver(Shape(4), MakeLruPolicy(Shape(4)));
  driver.OnLoadStarted({0, 1}, ReadClass::kSpeculative);
  Need(driver, {0, 1});

  driver.OnLoadFailed({0, 1});

  EXPECT_EQ(driver.residence({0, 1}), Residence::kUnreadable);
  EXPECT_EQ(driver.metrics().prefetch_bytes(), 0);
  EXPECT_EQ(driver.speculative_slots(), 0);
}

TEST(PolicyDriverTest, AFailedSpeculativeReadIsLeftToDemand) {
  PolicyDriver driver(Shape(4), MakeLruPolicy(Shape(4)));
  driver.OnLoadStarted({0, 1}, ReadClass::kSpeculative);

  driver.OnLoadFailed({0, 1});
  EXPECT_EQ(driver.residence({0, 1}), Residence::kUnreadable);
  Need(driver, {0, 1});
  Load(driver, {0, 1}, ReadClass::kDemand);

  EXPECT_EQ(driver.metrics().misses, 1);
  EXPECT_EQ(driver.residence({0, 1}), Residence::kResident);
}

TEST(PolicyDriverTest, SpeculationLeavesTwoSlotsToDemand) {
  PolicyDriver driver(Shape(4), std::make_unique<EagerPolicy>(ExpertId{1, 3}));
  Load(driver, {1, 0}, ReadClass::kSpeculative);
  EXPECT_TRUE(driver.NextPrefetch({}, true, {}, kNow).has_value());

  Load(driver, {1, 1}, ReadClass::kSpeculative);

  EXPECT_FALSE(driver.NextPrefetch({}, true, {}, kNow).has_value());
}

TEST(PolicyDriverTest, APrefetchIsSafeUntilItsLayerHasPassed) {
  PolicyDriver driver(Shape(4), std::make_unique<EagerPolicy>(ExpertId{1, 3}));
  const ExpertId ahead{1, 0};
  const std::vector<ExpertId> evictable = {ahead};
  Load(driver, ahead, ReadClass::kSpeculative);
  EXPECT_FALSE(driver.NextPrefetch(evictable, false, {}, kNow).has_value());

  driver.EndLayer(1, absl::ZeroDuration(), kNow);

  const auto prefetch = driver.NextPrefetch(evictable, false, {}, kNow);
  ASSERT_TRUE(prefetch.has_value());
  EXPECT_THAT(prefetch->victim, Optional(Eq(ahead)));
}

TEST(PolicyDriverTest, DemandSparesPrefetchesWhileItCan) {
  PolicyDriver driver(Shape(4), MakeLruPolicy(Shape(4)));
  const ExpertId ahead{1, 0};
  const ExpertId used{0, 1};
  Load(driver, ahead, ReadClass::kSpeculative);
  Load(driver, used);
  Need(driver, used);
  driver.EndLayer(0, absl::ZeroDuration(), kNow);
  const std::vector<ExpertId> both = {ahead, used};

  EXPECT_EQ(driver.ChooseVictim(both, {0, 2}, kNow), used);
  EXPECT_EQ(driver.ChooseVictim({both.data(), 1}, {0, 2}, kNow), ahead);
}

TEST(PolicyDriverTest, SpeculationNeverTakesANeedOfTheLayerInWork) {
  PolicyDriver driver(Shape(4), std::make_unique<EagerPolicy>(ExpertId{1, 3}));
  const ExpertId needed{0, 1};
  Load(driver, needed);

  Need(driver, needed);

  EXPECT_FALSE(driver.NextPrefetch({&needed, 1}, false, {}, kNow).has_value());
}

}  // namespace
}  // namespace portolan
