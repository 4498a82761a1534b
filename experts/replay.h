#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "experts/history.h"
#include "experts/link_model.h"
#include "experts/metrics.h"
#include "experts/policies.h"
#include "experts/trace.h"

namespace portolan {

struct ReplayOptions {
  // Ranks that share the experts of every layer in contiguous blocks
  // (FirstOwnedExpert) and serve sequences round robin.
  int32_t num_ranks = 1;
  // Of a rank, as --expert-memory takes it: "25%", "64MiB", "all".
  std::string expert_memory = "25%";
  LinkSpec link = {};
  // Of a load; 0: a third of it, at most 512 KiB and at least a 1024th of it.
  int64_t chunk_bytes = 0;
  PolicyOptions policy = {};
};

struct ReplayResult {
  std::string policy;
  int32_t num_ranks = 0;
  double budget = 0;  // slots / owned experts of all ranks, 0 .. 1
  std::vector<ExpertMetrics> ranks;
  ExpertMetrics total;  // merged over ranks
  // Of the whole run; the slowest rank of each layer counts.
  absl::Duration time = absl::ZeroDuration();
  absl::Duration compute = absl::ZeroDuration();  // the same without any stall
  std::vector<PredictionMetrics> predictions;     // merged over ranks
  int64_t loads = 0;   // that came over the links whole, of all ranks
  std::string notice;  // of the policy, or empty

  // What the run takes longer for its experts. With several ranks less than
  // their stalls together, for they wait at the same time.
  absl::Duration lost() const { return time - compute; }
  // Seconds, as ExpertMetrics::StallPerToken().
  double LostPerToken() const;
};

// What Replay() would refuse of these, before the work. Errors:
// kInvalidArgument.
absl::Status CheckReplay(const TraceHeader& header, std::string_view policy,
                         const ReplayOptions& options);

// Runs one policy ("oracle" included, and "adaptive+eviction" and the like, see
// policy_ablation.h) over a trace in simulated time: the union
// of each step is what its layers need, links and caches are those of
// SimulatedCache, predictors see what the gates said and hints travel in f16.
// The layers' compute times come from the trace.
//
// `history` is what predictors begin with; it is copied for the run. Null:
// empty. Deterministic.
// Errors: kInvalidArgument (options, a budget too small, a policy that wants
// what the trace does not hold); kFailedPrecondition if trace and history are
// of different models (CheckSameModel); kResourceExhausted if the history does
// not fit into memory.
absl::StatusOr<ReplayResult> Replay(const Trace& trace, std::string_view policy,
                                    const ReplayOptions& options,
                                    const History* history);

// Lets the policy's predictor learn from a trace without replaying a cache: how
// a history is made of recorded runs. Errors: kInvalidArgument, no such policy;
// kFailedPrecondition, a trace of another model.
absl::Status LearnTrace(const Trace& trace, std::string_view policy,
                        const PolicyOptions& options, History& history);

}  // namespace portolan
