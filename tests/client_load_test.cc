#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "clients/cc/load.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;

LoadRecord Record(double arrival, double ttft, double end, int64_t tokens,
                  absl::StatusCode code = absl::StatusCode::kOk) {
  LoadRecord record;
  record.arrival = absl::Seconds(arrival);
  record.sent = absl::Seconds(arrival);
  record.ttft = absl::Seconds(ttft);
  record.end = absl::Seconds(end);
  record.tokens = tokens;
  record.code = code;
  return record;
}

TEST(LoadTest, PoissonArrivalsHaveTheRateAndTheSpreadOfOne) {
  const auto arrivals = PoissonArrivals(/*rate=*/50, 20'000, /*seed=*/3);

  ASSERT_EQ(arrivals.size(), 20'000u);
  double squares = 0;
  absl::Duration last;
  for (const absl::Duration arrival : arrivals) {
    ASSERT_GE(arrival, last);
    const double gap = absl::ToDoubleSeconds(arrival - last) * 50;
    squares += gap * gap;
    last = arrival;
  }
  EXPECT_NEAR(absl::ToDoubleSeconds(last), 400, 400 * 0.03);
  // The second moment of an exponential variable with mean 1 is 2.
  EXPECT_NEAR(squares / 20'000, 2, 0.15);
}

TEST(LoadTest, EqualSeedsGiveEqualArrivals) {
  EXPECT_EQ(PoissonArrivals(5, 10, 1), PoissonArrivals(5, 10, 1));
  EXPECT_NE(PoissonArrivals(5, 10, 1), PoissonArrivals(5, 10, 2));
}

TEST(LoadTest, PercentilesAreValuesThatWereThere) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  const Spread spread = SpreadOf(values);
  EXPECT_EQ(spread.p50, 50);
  EXPECT_EQ(spread.p90, 90);
  EXPECT_EQ(spread.p99, 99);
  EXPECT_EQ(spread.max, 100);
  EXPECT_DOUBLE_EQ(spread.mean, 50.5);
  EXPECT_EQ(SpreadOf({7}).p99, 7);
  EXPECT_EQ(SpreadOf({}).count, 0);
}

TEST(LoadTest, SummaryCountsOnlyWhatWasDone) {
  const std::vector<LoadRecord> records = {
      Record(0, 0.5, 1.5, 11),
      Record(1, 0.25, 0.25, 1),
      Record(2, 0, 0.1, 0, absl::StatusCode::kResourceExhausted),
      Record(3, 0.5, 1, 99, absl::StatusCode::kUnavailable),
  };

  const LoadSummary summary = Summarize(records);

  EXPECT_EQ(summary.requests, 4);
  EXPECT_EQ(summary.done, 2);
  EXPECT_DOUBLE_EQ(summary.seconds, 4);
  EXPECT_DOUBLE_EQ(summary.offered_per_s, 1);
  EXPECT_DOUBLE_EQ(summary.tokens_per_s, 3);
  EXPECT_EQ(summary.errors.at("RESOURCE_EXHAUSTED"), 1);
  EXPECT_EQ(summary.errors.at("UNAVAILABLE"), 1);
  EXPECT_EQ(summary.ttft.count, 2);
  EXPECT_EQ(summary.tpot.count, 1);
  EXPECT_DOUBLE_EQ(summary.tpot.p50, 0.1);
  EXPECT_EQ(Summarize({}).requests, 0);
}

TEST(LoadTest, OneThatWasSentLateHasWaitedAllTheSame) {
  LoadRecord record;
  record.arrival = absl::Seconds(10);
  record.sent = absl::Seconds(13);

  record.TakeTokens(0, absl::Seconds(13));
  record.TakeTokens(2, absl::Seconds(14));
  record.TakeTokens(3, absl::Seconds(16));
  record.TakeEnd(absl::StatusCode::kOk, absl::Seconds(18));

  EXPECT_EQ(record.late(), absl::Seconds(3));
  EXPECT_EQ(record.ttft, absl::Seconds(4));
  EXPECT_EQ(record.end, absl::Seconds(8));
  EXPECT_EQ(record.tokens, 5);
  EXPECT_EQ(record.tpot(), absl::Seconds(1));
  const LoadSummary summary = Summarize({{record}});
  EXPECT_DOUBLE_EQ(summary.ttft.max, 4);
  EXPECT_DOUBLE_EQ(summary.end_to_end.max, 8);
  EXPECT_DOUBLE_EQ(summary.late.max, 3);
  EXPECT_DOUBLE_EQ(summary.seconds, 8);
}

TEST(LoadTest, ReadsPromptsWithSamplingAndArrivals) {
  const auto load = ParseLoad(
      R"({"id": "b", "domain": "x", "prompt": "two", "arrival_s": 2.5})"
      "\n\n"
      R"({"prompt_tokens": [3, 4], "arrival_s": 1, "max_tokens": 9, "stop": "."})",
      /*needs_arrivals=*/true);

  ASSERT_TRUE(load.ok()) << load.status();
  ASSERT_EQ(load->size(), 2u);
  EXPECT_EQ((*load)[0].arrival, absl::Seconds(1));
  EXPECT_EQ((*load)[0].request.tokens().ids_size(), 2);
  EXPECT_EQ((*load)[0].request.params().max_tokens(), 9u);
  EXPECT_EQ((*load)[0].request.params().stop(0), ".");
  EXPECT_EQ((*load)[1].request.text(), "two");
}

TEST(LoadTest, ErrorsNameLineAndField) {
  const auto message = [](const char* text, bool arrivals) {
    return std::string(ParseLoad(text, arrivals).status().message());
  };
  EXPECT_THAT(message("{\"prompt\": \"a\"}\n{\"prompt\": 5}", false),
              HasSubstr("line 2: \"prompt\""));
  EXPECT_THAT(message("{\"prompt\": \"a\"}", true), HasSubstr("arrival_s"));
  EXPECT_THAT(message("{\"prompt\": \"a\", \"arrival_s\": -1}", true),
              HasSubstr("arrival_s"));
  EXPECT_THAT(message("{\"prompt\": \"a\", \"max_tokens\": \"b\"}", false),
              HasSubstr("max_tokens"));
  EXPECT_THAT(message("{}", false), HasSubstr("prompt"));
  EXPECT_THAT(message("[]", false), HasSubstr("not a JSON object"));
  EXPECT_THAT(message("\n", false), HasSubstr("no request"));
}

}  // namespace
}  // namespace portolan
