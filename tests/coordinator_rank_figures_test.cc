#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <string>
#include <utility>

#include "cluster/coordinator/rank_figures.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class RankFiguresTest : public ::testing::Test {
 protected:
  static v1::RankMetrics Figures(uint64_t misses) {
    v1::RankMetrics metrics;
    metrics.set_expert_misses(misses);
    metrics.set_kv_cache_usage(0.25);
    metrics.set_expert_resident_bytes(1000);
    metrics.set_expert_capacity_bytes(4000);
    v1::Histogram& alltoall = *metrics.mutable_alltoall_s();
    alltoall.add_bounds(0.01);
    alltoall.add_bounds(0.1);
    for (const uint64_t count : {misses, uint64_t{0}, uint64_t{1}}) {
      alltoall.add_counts(count);
    }
    alltoall.set_sum(2);
    return metrics;
  }
  static RankIdentity Rank(int rank, uint64_t incarnation = 1,
                           std::string job = "job",
                           std::string model = "tiny") {
    return {.job = std::move(job),
            .rank = rank,
            .incarnation = incarnation,
            .model_name = std::move(model),
            .fingerprint = "f00d"};
  }
  static v1::RankMetrics Load(uint64_t selections) {
    v1::RankMetrics metrics;
    metrics.add_selections_by_layer(selections);
    return metrics;
  }
  std::string Text() const {
    return prometheus::TextSerializer().Serialize(registry_.Collect());
  }

  prometheus::Registry registry_;
  RankFigures figures_{registry_};
};

TEST_F(RankFiguresTest, AddsUpRanksAndTheirRestarts) {
  figures_.Update(Rank(0), Figures(5));
  figures_.Update(Rank(0), Figures(7));
  figures_.Update(Rank(1, 2), Figures(10));
  figures_.Update(Rank(0, 9), Figures(3));  // a new process

  EXPECT_THAT(Text(), HasSubstr("portolan_expert_cache_requests_total{"
                                "model_name=\"tiny\",result=\"miss\",tier="
                                "\"fast\"} 20"));
  EXPECT_THAT(Text(), HasSubstr("portolan_expert_cache_resident_bytes{model_"
                                "name=\"tiny\",tier=\"fast\"} 2000"));
  EXPECT_THAT(Text(), HasSubstr("portolan_expert_cache_capacity_bytes{model_"
                                "name=\"tiny\",tier=\"fast\"} 8000"));
  EXPECT_THAT(Text(), HasSubstr("portolan_alltoall_seconds_bucket{model_name="
                                "\"tiny\",le=\"0.01\"} 20"));
}

TEST_F(RankFiguresTest, KeepsModelsApartAndAddsUpTheJobsOfOne) {
  figures_.Update(Rank(0, 1, "a"), Figures(5));
  figures_.Update(Rank(0, 2, "b"), Figures(7));
  figures_.Update(Rank(0, 3, "c", "large"), Figures(100));

  const std::string text = Text();
  EXPECT_THAT(text, HasSubstr("model_name=\"tiny\",result=\"miss\",tier="
                              "\"fast\"} 12"));
  EXPECT_THAT(text, HasSubstr("model_name=\"large\",result=\"miss\",tier="
                              "\"fast\"} 100"));
  EXPECT_THAT(text,
              HasSubstr("resident_bytes{model_name=\"tiny\",tier=\"fast\"} "
                        "2000"));
  EXPECT_THAT(text, HasSubstr("alltoall_seconds_count{model_name=\"large\"} "
                              "101"));
  EXPECT_THAT(text, HasSubstr("kv_cache_usage_perc{job=\"c\",model_name="
                              "\"large\",rank=\"0\"} 0.25"));
}

TEST_F(RankFiguresTest, ARankThatIsGoneHoldsNothing) {
  figures_.Update(Rank(0), Figures(5));
  figures_.Forget("job", 0);
  EXPECT_THAT(Text(), HasSubstr("resident_bytes{model_name=\"tiny\",tier="
                                "\"fast\"} 0"));
  EXPECT_THAT(Text(), HasSubstr("capacity_bytes{model_name=\"tiny\",tier="
                                "\"fast\"} 0"));
  EXPECT_THAT(Text(), Not(HasSubstr("kv_cache_usage_perc{")));

  figures_.Update(Rank(0), Figures(6));
  EXPECT_THAT(Text(), HasSubstr("result=\"miss\",tier=\"fast\"} 6"))
      << "counted twice after it came back";
  EXPECT_THAT(Text(), HasSubstr("kv_cache_usage_perc{"));
}

TEST_F(RankFiguresTest, TokensOfARankThatIsGoneAreToldForAWhile) {
  const absl::Time start = absl::UnixEpoch();
  const std::string series =
      "portolan_rank_tokens_total{job=\"job\",model_name=\"tiny\",rank=\"0\"} ";
  figures_.Attach(Rank(0), {});
  figures_.CountTokens(Rank(0), 5, start);
  figures_.CountTokens(Rank(0), 2, start);
  figures_.Expire(start + absl::Hours(24));
  EXPECT_THAT(Text(), HasSubstr(series + "7")) << "it is attached";

  figures_.Attach(Rank(0, 2), {});  // a new process of the job
  figures_.CountTokens(Rank(0, 2), 3, start + absl::Hours(24));
  figures_.Forget("job", 0);
  const absl::Time end = start + absl::Hours(24) + RankFigures::kLinger;
  figures_.Expire(end - absl::Seconds(1));
  EXPECT_THAT(Text(), HasSubstr(series + "10"));
  figures_.Expire(end);
  EXPECT_THAT(Text(), Not(HasSubstr("portolan_rank_tokens_total{")));
}

TEST_F(RankFiguresTest, ARankThatIsGoneIsNoLoadToCompareWith) {
  figures_.Update(Rank(0), Load(30));
  figures_.Update(Rank(1), Load(10));
  EXPECT_THAT(Text(), HasSubstr("portolan_rank_imbalance_ratio{job=\"job\","
                                "model_name=\"tiny\"} 1.5"));

  figures_.Forget("job", 0);
  EXPECT_THAT(Text(), HasSubstr("portolan_rank_imbalance_ratio{job=\"job\","
                                "model_name=\"tiny\"} 1\n"));
  figures_.Forget("job", 1);
  EXPECT_THAT(Text(), Not(HasSubstr("portolan_rank_imbalance_ratio{")));

  figures_.Update(Rank(0, 7), Load(5));  // a new process of the job
  figures_.Update(Rank(1, 8), Load(5));
  EXPECT_THAT(Text(), HasSubstr("portolan_rank_imbalance_ratio{job=\"job\","
                                "model_name=\"tiny\"} 1\n"));
}

TEST_F(RankFiguresTest, TellsHowTheCacheOfEachRankIsMadeWhileItIsAttached) {
  v1::Capacity capacity;
  capacity.set_kv_tokens(640);
  capacity.set_kv_page_tokens(32);
  capacity.set_kv_dtype("bfloat16");
  figures_.Attach(Rank(1), capacity);

  EXPECT_THAT(Text(), HasSubstr("portolan_cache_config_info{block_size=\"32\","
                                "cache_dtype=\"bfloat16\",fingerprint=\"f00d"
                                "\",job=\"job\",model_name=\"tiny\","
                                "num_blocks=\"20\",rank=\"1\"} 1"));
  capacity.set_kv_tokens(320);
  figures_.Attach(Rank(1, 2), capacity);
  EXPECT_THAT(Text(), HasSubstr("num_blocks=\"10\""));
  EXPECT_THAT(Text(), Not(HasSubstr("num_blocks=\"20\"")));
  figures_.Forget("job", 1);
  EXPECT_THAT(Text(), Not(HasSubstr("portolan_cache_config_info{")));
}

TEST_F(RankFiguresTest, CountsReadsAheadByTheirOutcomeAndMatchesByTheirScore) {
  v1::RankMetrics metrics;
  metrics.set_expert_prefetches_used(5);
  metrics.set_expert_prefetches_late(2);
  metrics.set_expert_prefetches_wasted(1);
  v1::Histogram& scores = *metrics.mutable_expert_map_match_score();
  scores.add_bounds(0.5);
  scores.add_counts(3);
  scores.add_counts(4);
  scores.set_sum(4.5);
  *metrics.mutable_step_tokens() = scores;
  figures_.Update(Rank(0), metrics);

  for (const char* line : {
           "portolan_expert_prefetch_total{model_name=\"tiny\",outcome="
           "\"used\"} 5",
           "portolan_expert_prefetch_total{model_name=\"tiny\",outcome="
           "\"late\"} 2",
           "portolan_expert_prefetch_total{model_name=\"tiny\",outcome="
           "\"wasted\"} 1",
           "portolan_expert_map_match_score_bucket{model_name=\"tiny\",le="
           "\"0.5\"} 3",
           "portolan_iteration_tokens_total_count{model_name=\"tiny\"} 7",
       }) {
    EXPECT_THAT(Text(), HasSubstr(line));
  }
}

TEST_F(RankFiguresTest, LeavesOutBucketsThatDoNotFit) {
  figures_.Update(Rank(0), Figures(5));
  v1::RankMetrics odd = Figures(5);
  odd.mutable_alltoall_s()->add_bounds(1);
  odd.mutable_alltoall_s()->add_counts(100);
  figures_.Update(Rank(1), odd);
  odd.mutable_alltoall_s()->add_counts(100);
  figures_.Update(Rank(2), odd);

  EXPECT_THAT(Text(),
              HasSubstr("portolan_alltoall_seconds_count{model_name=\"tiny\"} "
                        "6"));
}

TEST_F(RankFiguresTest, ImbalanceIsTheMeanOverLayersWithLoad) {
  EXPECT_EQ(ImbalanceRatio({}), 0);
  EXPECT_EQ(ImbalanceRatio({{0, 0}, {0, 0}}), 0);
  EXPECT_EQ(ImbalanceRatio({{3, 0}, {3, 0}}), 1);
  EXPECT_EQ(ImbalanceRatio({{4, 1}, {0, 1}}), 1.5);
  EXPECT_EQ(ImbalanceRatio({{4}, {0, 2}}), 2);
}

}  // namespace
}  // namespace portolan
