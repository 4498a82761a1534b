#pragma once

#include <prometheus/registry.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "proto/control.pb.h"

namespace portolan {

// Makes series of what ranks count: sums over ranks, whose counters go on when
// a rank begins anew, and gauges. Thread-compatible.
class RankFigures {
 public:
  // `registry` must outlive it.
  explicit RankFigures(prometheus::Registry& registry) : registry_(registry) {}

  // The figures of a rank's heartbeat. A process begins at 0.
  void Update(const std::string& job, int rank, uint64_t incarnation,
              const v1::RankMetrics& metrics);
  // Its gauges end; what it counted stays.
  void Forget(const std::string& job, int rank);

 private:
  using Labels = std::map<std::string, std::string>;
  struct Last {
    uint64_t incarnation = 0;
    v1::RankMetrics metrics = {};
  };

  void Count(const char* name, const char* help, const Labels& labels,
             double before, double now);
  void CountExperts(const v1::RankMetrics& before, const v1::RankMetrics& now);
  void CountExchange(const v1::RankMetrics& before, const v1::RankMetrics& now);
  void CountAlltoall(const v1::Histogram& before, const v1::Histogram& now);
  void SetGauges(const std::string& job);

  prometheus::Registry& registry_;
  std::map<std::pair<std::string, int>, Last> ranks_;
  std::vector<double> alltoall_bounds_;
};

// Mean over layers of the busiest rank's load over the mean of all ranks;
// layers without load do not count. 0: no load at all.
double ImbalanceRatio(
    const std::vector<std::vector<uint64_t>>& loads_by_rank_and_layer);

}  // namespace portolan
