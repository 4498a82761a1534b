#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "comm/agreement.h"
#include "comm/local_world.h"

namespace portolan {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(FindOddRanksTest, TheMinorityIsOdd) {
  EXPECT_THAT(FindOddRanks(std::vector<uint64_t>{8, 7, 7}),
              ElementsAre(Rank{0}));
  EXPECT_THAT(FindOddRanks(std::vector<uint64_t>{7, 8, 7, 9, 7}),
              ElementsAre(Rank{1}, Rank{3}));
}

TEST(FindOddRanksTest, OnATieTheHigherRankIsOdd) {
  EXPECT_THAT(FindOddRanks(std::vector<uint64_t>{7, 8}), ElementsAre(Rank{1}));
  EXPECT_THAT(FindOddRanks(std::vector<uint64_t>{9, 8, 8, 9}),
              ElementsAre(Rank{1}, Rank{2}));
}

TEST(FindOddRanksTest, NobodyIsOddWhereAllAgree) {
  EXPECT_THAT(FindOddRanks(std::vector<uint64_t>{7, 7, 7}), IsEmpty());
  EXPECT_THAT(FindOddRanks(std::vector<uint64_t>{7}), IsEmpty());
}

TEST(AgreeTest, EveryRankNamesTheOddOne) {
  std::vector<absl::Status> results(3);
  (void)RunLocalWorld(3, [&](Transport& transport) {
    const int rank = ToIndex(transport.rank());
    const AgreedField fields[] = {
        {"hidden size", 64, "a"},
        {"numerics id", rank == 1 ? 0xbadu : 0x7u, "start with one model"}};
    const absl::Status status = Agree(transport, fields, absl::Seconds(20));
    results[static_cast<size_t>(rank)] = status;
    return status;
  });

  for (const absl::Status& result : results) {
    EXPECT_TRUE(absl::IsFailedPrecondition(result)) << result;
    EXPECT_THAT(std::string(result.message()),
                AllOf(HasSubstr("rank 1 on "), HasSubstr("numerics id 0xbad"),
                      HasSubstr("0x7"), HasSubstr("start with one model")));
  }
}

}  // namespace
}  // namespace portolan
