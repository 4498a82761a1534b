#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "experts/memory_budget.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kSlot = 4096;

int64_t Slots(std::string_view text, int64_t owned = 256) {
  const auto budget = PlanExpertMemory(text, owned, kSlot);
  return budget.ok() ? budget->num_slots : -1;
}

TEST(MemoryBudgetTest, AllIsEveryOwnedExpert) {
  const auto budget = PlanExpertMemory("all", 7, kSlot);

  ASSERT_TRUE(budget.ok());
  EXPECT_TRUE(budget->resident());
  EXPECT_EQ(budget->bytes(), 7 * kSlot);
}

TEST(MemoryBudgetTest, AShareIsOfTheOwnedExpertsAndRoundsDown) {
  EXPECT_EQ(Slots("100%"), 256);
  EXPECT_EQ(Slots("50%"), 128);
  EXPECT_EQ(Slots("12.5%"), 32);
  EXPECT_EQ(Slots("1%"), 2);
  EXPECT_EQ(Slots("33%", 10), 3);
  EXPECT_EQ(Slots("12.50%"), 32);
  EXPECT_EQ(Slots(".5%", 1000), 5);
  EXPECT_EQ(Slots("99.999999999999%"), 255);
}

// In floating point 29 % of 100 are 28.999..., 58 are 57.99...
TEST(MemoryBudgetTest, EveryWholePercentOfAHundredIsThatMany) {
  for (int64_t percent = 2; percent <= 100; ++percent) {
    EXPECT_EQ(Slots(std::to_string(percent) + "%", 100), percent);
  }
}

TEST(MemoryBudgetTest, BytesBuyWholeSlotsAndNeverMoreThanOwned) {
  EXPECT_EQ(Slots("8192"), 2);
  EXPECT_EQ(Slots("12287"), 2);
  EXPECT_EQ(Slots("64KiB"), 16);
  EXPECT_EQ(Slots("1GiB"), 256);
}

TEST(MemoryBudgetTest, LessThanTwoSlotsIsRefusedNamingTheMinimum) {
  const auto budget = PlanExpertMemory("8191", 256, kSlot);

  ASSERT_TRUE(absl::IsInvalidArgument(budget.status()));
  EXPECT_THAT(std::string(budget.status().message()),
              HasSubstr("at least 2 are needed: write 8192 (8.0 KiB) or more"));
  EXPECT_EQ(Slots("0.5%"), -1);
}

TEST(MemoryBudgetTest, ARankOfOneExpertNeedsOneSlotAndAnEmptyRankNone) {
  EXPECT_EQ(Slots("4096", 1), 1);
  EXPECT_EQ(Slots("1", 1), -1);
  EXPECT_EQ(Slots("all", 0), 0);
  EXPECT_EQ(Slots("25%", 0), 0);
}

TEST(MemoryBudgetTest, NonsenseIsRefusedNamingTheFlag) {
  for (const char* text :
       {"", "some", "0%", "-5%", "101%", "%", "12 apples", "nan%", "-1",
        "1.2.3%", ".%", "+5%", " 5%", "1e99GB"}) {
    const auto budget = PlanExpertMemory(text, 256, kSlot);
    ASSERT_TRUE(absl::IsInvalidArgument(budget.status())) << text;
    EXPECT_THAT(std::string(budget.status().message()),
                HasSubstr("--expert-memory"));
  }
}

}  // namespace
}  // namespace portolan
