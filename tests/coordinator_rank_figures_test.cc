#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <string>

#include "cluster/coordinator/rank_figures.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;

class RankFiguresTest : public ::testing::Test {
 protected:
  static v1::RankMetrics Figures(uint64_t misses) {
    v1::RankMetrics metrics;
    metrics.set_expert_misses(misses);
    metrics.set_kv_cache_usage(0.25);
    metrics.set_expert_resident_bytes(1000);
    v1::Histogram& alltoall = *metrics.mutable_alltoall_s();
    alltoall.add_bounds(0.01);
    alltoall.add_bounds(0.1);
    for (const uint64_t count : {misses, uint64_t{0}, uint64_t{1}}) {
      alltoall.add_counts(count);
    }
    alltoall.set_sum(2);
    return metrics;
  }
  std::string Text() const {
    return prometheus::TextSerializer().Serialize(registry_.Collect());
  }

  prometheus::Registry registry_;
  RankFigures figures_{registry_};
};

TEST_F(RankFiguresTest, AddsUpRanksAndTheirRestarts) {
  figures_.Update("job", 0, 1, Figures(5));
  figures_.Update("job", 0, 1, Figures(7));
  figures_.Update("job", 1, 2, Figures(10));
  figures_.Update("job", 0, 9, Figures(3));  // a new process

  EXPECT_THAT(Text(), HasSubstr("portolan_expert_cache_requests_total{result="
                                "\"miss\",tier=\"fast\"} 20"));
  EXPECT_THAT(
      Text(),
      HasSubstr("portolan_expert_cache_resident_bytes{tier=\"fast\"} 2000"));
  EXPECT_THAT(Text(),
              HasSubstr("portolan_alltoall_seconds_bucket{le=\"0.01\"} 20"));
}

TEST_F(RankFiguresTest, ARankThatIsGoneHoldsNothing) {
  figures_.Update("job", 0, 1, Figures(5));
  figures_.Forget("job", 0);
  EXPECT_THAT(
      Text(),
      HasSubstr("portolan_expert_cache_resident_bytes{tier=\"fast\"} 0"));

  figures_.Update("job", 0, 1, Figures(6));
  EXPECT_THAT(Text(), HasSubstr("result=\"miss\",tier=\"fast\"} 6"))
      << "counted twice after it came back";
}

TEST_F(RankFiguresTest, LeavesOutBucketsThatDoNotFit) {
  figures_.Update("job", 0, 1, Figures(5));
  v1::RankMetrics odd = Figures(5);
  odd.mutable_alltoall_s()->add_bounds(1);
  odd.mutable_alltoall_s()->add_counts(100);
  figures_.Update("job", 1, 1, odd);
  odd.mutable_alltoall_s()->add_counts(100);
  figures_.Update("job", 2, 1, odd);

  EXPECT_THAT(Text(), HasSubstr("portolan_alltoall_seconds_count 6"));
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
