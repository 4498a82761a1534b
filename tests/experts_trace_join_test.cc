#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <utility>
#include <vector>

#include "experts/replay.h"
#include "experts/trace_join.h"
#include "tests/synthetic_trace.h"

namespace portolan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Trace OfRank(int32_t rank, int32_t num_ranks, uint32_t seed = 1) {
  Trace trace = SyntheticTrace({.num_steps = 4, .seed = seed});
  trace.header.num_ranks = num_ranks;
  for (TraceStep& step : trace.steps) {
    for (TraceSlice& slice : step.slices) {
      slice.rank = rank;
      slice.sequence = slice.sequence * num_ranks + rank;
    }
  }
  return trace;
}

std::string ErrorOf(std::vector<NamedTrace> files) {
  const absl::Status status = JoinTraces(std::move(files)).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  return std::string(status.message());
}

TEST(JoinTracesTest, JoinsTheStepsOfRanksByNumber) {
  Trace first = OfRank(0, 2);
  Trace second = OfRank(1, 2, /*seed=*/2);
  second.steps[1].layers[0].gate_s = 1.0f;
  first.steps[1].layers[0].experts_s = 3.0f;  // waited for the second
  second.steps[1].layers[0].experts_s = 2.0f;

  const auto joined = JoinTraces({{"t.0", first}, {"t.1", second}});

  ASSERT_TRUE(joined.ok()) << joined.status();
  ASSERT_EQ(joined->steps.size(), 4u);
  EXPECT_EQ(joined->steps[1].slices.size(), 2u);
  EXPECT_EQ(joined->steps[1].num_tokens(), 2);
  EXPECT_EQ(joined->steps[1].layers[0].gate_s, 1.0f);
  EXPECT_EQ(joined->steps[1].layers[0].experts_s, 2.0f);
}

TEST(JoinTracesTest, RunsFollowEachOtherWithStepsAndSequencesCountedOn) {
  const auto joined = JoinTraces({{"a.0", OfRank(0, 2)},
                                  {"a.1", OfRank(1, 2)},
                                  {"b.1", OfRank(1, 2, 3)},
                                  {"b.0", OfRank(0, 2, 4)}});

  ASSERT_TRUE(joined.ok()) << joined.status();
  ASSERT_EQ(joined->steps.size(), 8u);
  std::set<int64_t> early;
  std::set<int64_t> late;
  for (int64_t i = 0; i < 8; ++i) {
    const TraceStep& step = joined->steps[static_cast<size_t>(i)];
    EXPECT_EQ(step.step, i);
    for (const TraceSlice& slice : step.slices) {
      (i < 4 ? early : late).insert(slice.sequence);
    }
  }
  EXPECT_EQ(early, (std::set<int64_t>{0, 1}));
  EXPECT_EQ(late, (std::set<int64_t>{2, 3}));
}

TEST(JoinTracesTest, AReplayOfTwoRunsNeedsWhatBothNeeded) {
  const auto joined = JoinTraces({{"a", OfRank(0, 1)}, {"b", OfRank(0, 1, 5)}});
  ASSERT_TRUE(joined.ok()) << joined.status();
  ReplayOptions options;
  options.link = *ParseLinkSpec("1GB/s,50us");
  const auto accesses = [&](const Trace& trace) {
    return Replay(trace, "adaptive", options, nullptr)->total.accesses();
  };

  EXPECT_EQ(accesses(*joined),
            accesses(OfRank(0, 1)) + accesses(OfRank(0, 1, 5)));
}

TEST(JoinTracesTest, RefusesFilesOfDifferentModelsNamingBoth) {
  for (const auto& change : {+[](TraceHeader& h) { h.fingerprint += 1; },
                             +[](TraceHeader& h) { h.num_layers += 1; },
                             +[](TraceHeader& h) { h.top_k += 1; }}) {
    Trace other = OfRank(0, 1);
    change(other.header);

    EXPECT_THAT(ErrorOf({{"one", OfRank(0, 1)}, {"two", other}}),
                AllOf(HasSubstr("one and two"), HasSubstr("different models")));
  }
}

TEST(JoinTracesTest, RefusesRunsOfUnlikeRanksSlotsOrLookahead) {
  Trace slots = OfRank(0, 1);
  slots.header.expert_bytes *= 2;
  Trace numerics = OfRank(0, 1);
  numerics.header.numerics_id += 1;
  Trace lookahead = OfRank(0, 1);
  lookahead.header.lookahead = 0;

  EXPECT_THAT(ErrorOf({{"one", OfRank(0, 1)}, {"two", OfRank(0, 2)}}),
              HasSubstr("ranks"));
  EXPECT_THAT(ErrorOf({{"one", OfRank(0, 1)}, {"two", slots}}),
              HasSubstr("sizes"));
  EXPECT_THAT(ErrorOf({{"one", OfRank(0, 1)}, {"two", numerics}}),
              HasSubstr("unlike numerics"));
  EXPECT_THAT(ErrorOf({{"one", OfRank(0, 1)}, {"two", lookahead}}),
              HasSubstr("look-ahead"));
}

TEST(JoinTracesTest, RefusesARunWhoseFilesAreNotAllThereOrOneOfThemTwice) {
  EXPECT_THAT(ErrorOf({{"t.0", OfRank(0, 2)}}),
              AllOf(HasSubstr("t.0"), HasSubstr("a run of 2 ranks"),
                    HasSubstr("name all of them")));
  EXPECT_THAT(ErrorOf({{"t.0", OfRank(0, 2)}, {"copy", OfRank(0, 2)}}),
              AllOf(HasSubstr("t.0 and copy are both of rank 0")));
  EXPECT_THAT(ErrorOf({}), HasSubstr("no trace"));
}

TEST(JoinTracesTest, ARankWithoutTokensHasItsPlace) {
  Trace idle = OfRank(1, 2);
  idle.steps.clear();

  const auto joined = JoinTraces({{"t.0", OfRank(0, 2)}, {"t.1", idle}});

  ASSERT_TRUE(joined.ok()) << joined.status();
  EXPECT_EQ(joined->steps.size(), 4u);
}

}  // namespace
}  // namespace portolan
