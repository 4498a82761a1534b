#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "experts/policy_ablation.h"
#include "experts/replay_plot.h"
#include "experts/replay_report.h"

namespace portolan {
namespace {

using testing::HasSubstr;
using testing::Not;

ReplayRow Row(std::string policy, double budget, double stall_s,
              int64_t hits = 3) {
  ReplayRow row;
  row.expert_memory = budget == 0.25 ? "25%" : "50%";
  row.budget = budget;
  row.cpu_us_per_layer = 1.5;
  row.result.policy = std::move(policy);
  row.result.num_ranks = 1;
  row.result.total.tokens = 100;
  row.result.total.hits = hits;
  row.result.total.misses = 4 - hits;
  row.result.total.stall = absl::Seconds(stall_s);
  row.result.ranks = {row.result.total};
  return row;
}

// lru loses 10 s, adaptive 6 s, the oracle 2 s; of adaptive's 6 s perfect hints
// would save 3, perfect victims 1 and perfect reads 0.5.
std::vector<ReplayRow> RowsOfWhy() {
  return {Row("lru", 0.25, 10),
          Row("adaptive", 0.25, 6),
          Row("oracle", 0.25, 2),
          Row("adaptive+prediction", 0.25, 3),
          Row("adaptive+eviction", 0.25, 5),
          Row("adaptive+admission", 0.25, 5.5)};
}

size_t Count(const std::string& text, std::string_view part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos;
       at = text.find(part, at + part.size())) {
    ++count;
  }
  return count;
}

TEST(ReplayReportTest, TheGapIsToTheOracleOfTheSameBudget) {
  const std::vector<ReplayRow> rows = {
      Row("lru", 0.25, 10), Row("oracle", 0.25, 4), Row("lru", 0.5, 5)};

  const nlohmann::json json = ReplayJson(rows);

  EXPECT_DOUBLE_EQ(json[0]["gap_s"], 6);
  EXPECT_DOUBLE_EQ(json[1]["gap_s"], 0);
  EXPECT_FALSE(json[2].contains("gap_s"));
  EXPECT_DOUBLE_EQ(json[0]["stall_per_token_s"], 0.1);
  EXPECT_DOUBLE_EQ(json[0]["lost_per_token_s"], 0);
  EXPECT_DOUBLE_EQ(json[0]["hit_rate"], 0.75);
  EXPECT_DOUBLE_EQ(json[0]["cpu_us_per_layer"], 1.5);
}

// Two ranks wait 6 s each, of which 4 at the same time.
TEST(ReplayReportTest, WhatARunLosesIsNotWhatItsRanksWait) {
  ReplayRow row = Row("lru", 0.25, 12);
  row.result.time = absl::Seconds(20);
  row.result.compute = absl::Seconds(12);

  const nlohmann::json json = ReplayJson(std::vector{row});

  EXPECT_DOUBLE_EQ(json[0]["stall_per_token_s"], 0.12);
  EXPECT_DOUBLE_EQ(json[0]["lost_per_token_s"], 0.08);
}

TEST(ReplayReportTest, TheTableHasARowForEachAndADashWithoutAnOracle) {
  const std::string table =
      ReplayTable(std::vector{Row("lru", 0.25, 10), Row("adaptive", 0.5, 5)});

  EXPECT_EQ(Count(table, "\n"), 3u);
  EXPECT_THAT(table, HasSubstr("gap s"));
  EXPECT_EQ(Count(table, " -\n"), 2u);
}

TEST(ReplayReportTest, LossIsToldByCause) {
  const std::string table = LossTable(RowsOfWhy());

  // memory, lru, adaptive, oracle, closed share; prediction, eviction,
  // admission, link.
  EXPECT_THAT(table, testing::ContainsRegex(
                         "25% +10\\.000 +6\\.000 +2\\.000 +50\\.0 % \\| "
                         "+3\\.000 +1\\.000 +0\\.500 +2\\.000"));
}

TEST(ReplayReportTest, ABudgetWithoutAllCausesHasNoLossRow) {
  std::vector<ReplayRow> rows = RowsOfWhy();
  rows.pop_back();

  EXPECT_THAT(LossTable(rows), Not(HasSubstr("25%")));
}

TEST(ReplayPlotTest, DrawsEveryPolicyInBothCharts) {
  const std::vector<ReplayRow> rows = {Row("lru", 0.25, 10), Row("lru", 0.5, 5),
                                       Row("oracle", 0.25, 2),
                                       Row("oracle", 0.5, 1)};

  const std::string svg = PlotReplay(rows, "tiny & <small>");

  EXPECT_EQ(Count(svg, "<path "), 4u);
  EXPECT_EQ(Count(svg, "<circle "), 8u);
  EXPECT_EQ(Count(svg, "stroke-dasharray"), 2u);
  EXPECT_THAT(svg, HasSubstr("tiny &amp; &lt;small&gt;"));
  EXPECT_TRUE(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
}

TEST(ReplayPlotTest, MoreStallIsDrawnHigher) {
  const std::string svg =
      PlotReplay(std::vector{Row("lru", 0.25, 10), Row("lru", 0.5, 0)}, "t");

  // 10 s over 100 tokens are 100 ms, the chart's top (y 60); none is its
  // bottom.
  EXPECT_THAT(svg, HasSubstr("M155.0 60.0 L250.0 360.0"));
}

TEST(ReplayPlotTest, NoStallAtAllStillDraws) {
  const std::string svg = PlotReplay(std::vector{Row("lru", 0.25, 0)}, "t");

  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

TEST(PolicyAblationTest, NamesSplitIntoPolicyAndParts) {
  Ablation ablation;
  EXPECT_EQ(SplitAblation("adaptive+eviction+prediction", ablation),
            "adaptive");
  EXPECT_TRUE(ablation.eviction);
  EXPECT_TRUE(ablation.prediction);
  EXPECT_FALSE(ablation.admission);

  Ablation none;
  EXPECT_EQ(SplitAblation("lru", none), "lru");
  EXPECT_FALSE(none.any());
}

TEST(PolicyAblationTest, AnUnknownPartStaysWithTheName) {
  Ablation ablation;
  EXPECT_EQ(SplitAblation("adaptive+luck", ablation), "adaptive+luck");
  EXPECT_FALSE(ablation.any());
}

}  // namespace
}  // namespace portolan
