#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "experts/slot_table.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using State = SlotTable::State;

std::vector<ExpertId> Evictable(const SlotTable& table) {
  std::vector<ExpertId> ids = {{7, 7}};
  table.ListEvictable(ids);
  return ids;
}

TEST(SlotTableTest, ASlotIsFoundFromItsReadUntilItIsCleared) {
  SlotTable table(2, 3, 4);
  const int32_t slot = table.StartReading({2, 3});
  EXPECT_EQ(table.Find({2, 3}), slot);
  EXPECT_EQ(table.state(slot), State::kReading);
  EXPECT_EQ(table.num_free(), 1);

  table.SetResident(slot);
  table.Clear(slot);

  EXPECT_EQ(table.Find({2, 3}), std::nullopt);
  EXPECT_EQ(table.state(slot), State::kEmpty);
  EXPECT_EQ(table.num_free(), 2);
}

TEST(SlotTableTest, OnlyResidentsWithoutLeaseAndWishAreEvictable) {
  SlotTable table(4, 1, 8);
  table.StartReading({0, 0});
  for (const int32_t expert : {1, 2, 3}) {
    table.SetResident(table.StartReading({0, expert}));
  }
  const uint32_t generation = table.Lease(*table.Find({0, 1}));
  table.AddWish({0, 2});
  EXPECT_THAT(Evictable(table), ElementsAre(ExpertId{0, 3}));

  table.Release(*table.Find({0, 1}), generation);
  table.DropWish({0, 2});
  table.AddWish({0, 3});
  table.AddWish({0, 3});
  table.DropWish({0, 3});
  EXPECT_THAT(Evictable(table), ElementsAre(ExpertId{0, 1}, ExpertId{0, 2}));
}

TEST(SlotTableTest, ResidentsAreCountedOnlyWhileTheyAreLoaded) {
  SlotTable table(3, 1, 4);
  const int32_t failed = table.StartReading({0, 0});
  const int32_t loaded = table.StartReading({0, 1});
  EXPECT_EQ(table.num_resident(), 0);

  table.SetResident(loaded);
  table.Clear(failed);
  EXPECT_EQ(table.num_resident(), 1);

  table.Clear(loaded);
  EXPECT_EQ(table.num_resident(), 0);
}

TEST(SlotTableTest, EachFillingHasItsOwnGeneration) {
  SlotTable table(1, 1, 2);
  const int32_t slot = table.StartReading({0, 0});
  table.SetResident(slot);
  const uint32_t first = table.generation(slot);
  table.Clear(slot);
  EXPECT_THAT(Evictable(table), IsEmpty());

  EXPECT_EQ(table.StartReading({0, 1}), slot);

  EXPECT_NE(table.generation(slot), first);
}

TEST(SlotTableDeathTest, ALeaseOfAnotherFillingIsABug) {
  SlotTable table(1, 1, 2);
  const int32_t slot = table.StartReading({0, 0});
  EXPECT_DEATH(table.Lease(slot), "kResident");
  table.SetResident(slot);
  const uint32_t generation = table.Lease(slot);
  EXPECT_DEATH(table.Clear(slot), "leases == 0");
  EXPECT_DEATH(table.Release(slot, generation + 1), "generation");
}

}  // namespace
}  // namespace portolan
