#pragma once

#include <prometheus/registry.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "proto/control.pb.h"

namespace portolan {

// A process that is a rank of a job.
struct RankIdentity {
  std::string job = {};
  int rank = 0;
  uint64_t incarnation = 0;
  std::string model_name = {};
  std::string fingerprint = {};  // of the model
};

// Makes series of what ranks count: by model, sums over its ranks in all jobs,
// whose counters go on when a rank begins anew; gauges of ranks and jobs, as
// long as they are attached; and the tokens of each rank, a counter that stays
// for kLinger after the last one, so that it is scraped. Thread-compatible.
class RankFigures {
 public:
  static constexpr absl::Duration kLinger = absl::Minutes(15);

  // `registry` must outlive it.
  explicit RankFigures(prometheus::Registry& registry) : registry_(registry) {}

  void Attach(const RankIdentity& rank, const v1::Capacity& capacity);
  // The figures of an attached rank's heartbeat. A process begins at 0.
  void Update(const RankIdentity& rank, const v1::RankMetrics& metrics);
  // Tokens that were taken from it.
  void CountTokens(const RankIdentity& rank, int64_t count, absl::Time now);
  // Its gauges end; what its model counts stays.
  void Forget(const std::string& job, int rank);
  // Ends the series of ranks that are gone, once they have lingered.
  void Expire(absl::Time now);

 private:
  using Labels = std::map<std::string, std::string>;
  using Key = std::pair<std::string, int>;  // job, rank
  struct Last {
    RankIdentity identity;
    bool attached = true;
    Labels config = {};  // of its info series; empty: none
    // Of one that is gone, to go on from if the same process comes back.
    v1::RankMetrics metrics = {};
  };

  Last& Find(const RankIdentity& rank);
  void Count(const char* name, const char* help, const Labels& labels,
             double before, double now);
  void CountHistogram(const char* name, const char* help,
                      const std::string& model, const v1::Histogram& before,
                      const v1::Histogram& now);
  void CountExperts(const std::string& model, const v1::RankMetrics& before,
                    const v1::RankMetrics& now);
  void CountExchange(const std::string& model, const v1::RankMetrics& before,
                     const v1::RankMetrics& now);
  void SetGauges(const RankIdentity& changed);
  void SetImbalance(const RankIdentity& changed);
  void ForgetOldest();

  prometheus::Registry& registry_;
  std::map<Key, Last> ranks_;
  std::vector<Key> gone_;  // oldest first
  // By rank and name of its model: when its series counted last.
  std::map<std::pair<Key, std::string>, absl::Time> tokens_;
  // The buckets of a series are those of the first rank that told any.
  std::map<std::pair<std::string, std::string>, std::vector<double>> bounds_;
};

// Mean over layers of the busiest rank's load over the mean of all ranks;
// layers without load do not count. 0: no load at all.
double ImbalanceRatio(
    const std::vector<std::vector<uint64_t>>& loads_by_rank_and_layer);

}  // namespace portolan
