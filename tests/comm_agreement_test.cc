#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/agreement.h"
#include "comm/local_world.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;

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

// What each of three ranks says, where rank 1 alone has another value.
std::vector<absl::Status> Disagree(const std::string& text_of_rank_1,
                                   const std::string& text) {
  std::vector<absl::Status> results(3);
  (void)RunLocalWorld(3, [&](Transport& transport) {
    const int rank = ToIndex(transport.rank());
    const AgreedField fields[] = {
        {"hidden size", 64, "a", "64"},
        {"--format", rank == 1 ? 0xbadu : 0x7u, "give every rank the same",
         rank == 1 ? text_of_rank_1 : text},
        // Only the first that differs is told.
        {"--seed", static_cast<uint64_t>(rank), "b", absl::StrCat(rank)}};
    const absl::Status status = Agree(transport, fields, absl::Seconds(20));
    results[static_cast<size_t>(rank)] = status;
    return status;
  });
  for (const absl::Status& result : results) {
    EXPECT_TRUE(absl::IsFailedPrecondition(result)) << result;
    EXPECT_TRUE(IsOfAllRanks(result)) << result;
    EXPECT_EQ(result.message(), results[0].message());
  }
  return results;
}

TEST(AgreeTest, EveryRankNamesTheOddOneAndWhatBothHave) {
  EXPECT_THAT(std::string(Disagree("jsonl", "text")[2].message()),
              MatchesRegex("rank 1 on [^ ]+ has --format jsonl where the "
                           "others \\(rank 0 on [^ ]+, \\.\\.\\.\\) have text: "
                           "give every rank the same"));
}

TEST(AgreeTest, WhereTextsDoNotTellThemApartNoneIsTakenForTheReason) {
  EXPECT_THAT(std::string(Disagree("", "")[0].message()),
              MatchesRegex("rank 1 on [^ ]+ has another --format than the "
                           "others \\(rank 0 on [^)]+\\): give .*"));
  EXPECT_THAT(std::string(Disagree("/tiny", "/tiny")[0].message()),
              MatchesRegex("rank 1 on [^ ]+ has another --format than the "
                           "others \\(rank 0 on [^)]+\\), though both say "
                           "/tiny: give .*"));
}

TEST(AgreeTest, ALongTextIsCutBetweenCharacters) {
  std::string umlauts;
  for (int i = 0; i < 200; ++i) umlauts += "\xc3\xa4";

  const std::string text(Disagree(umlauts, "x")[0].message());

  EXPECT_THAT(text, HasSubstr("\xc3\xa4... where"));
  EXPECT_LT(text.size(), 400u);
}

TEST(AgreeTest, EveryOddRankIsNamedWithItsOwnText) {
  std::vector<absl::Status> results(4);
  (void)RunLocalWorld(4, [&](Transport& transport) {
    const int rank = ToIndex(transport.rank());
    const auto value = static_cast<uint64_t>(rank == 0 ? 5 : rank == 3 ? 6 : 7);
    const AgreedField field[] = {
        {"--weights", value, "remedy", absl::StrCat("int", value)}};
    return results[static_cast<size_t>(rank)] =
               Agree(transport, field, absl::Seconds(20));
  });

  EXPECT_THAT(std::string(results[1].message()),
              MatchesRegex("rank 0 on [^ ]+ has --weights int5, rank 3 on "
                           "[^ ]+ has --weights int6 where the others \\(rank "
                           "1 on .*\\) have int7: remedy"));
}

TEST(AgreeTest, AnErrorIsOfAllRanksOnlyIfItIsMarked) {
  const absl::Status status = absl::AbortedError("lost");

  EXPECT_FALSE(IsOfAllRanks(status));
  EXPECT_TRUE(IsOfAllRanks(OfAllRanks(status)));
  EXPECT_EQ(OfAllRanks(status).message(), "lost");
  EXPECT_FALSE(IsOfAllRanks(OfAllRanks(absl::OkStatus())));
}

}  // namespace
}  // namespace portolan
