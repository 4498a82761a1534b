#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "experts/predictor.h"
#include "experts/trace.h"

namespace portolan {

// Shows a predictor what the engine would have shown it: the steps of a trace,
// as far as they concern the sequences of one rank (sequence modulo ranks).
// Thread-compatible.
class ReplayFeed {
 public:
  // `trace` must outlive the feed.
  ReplayFeed(const Trace& trace, int32_t rank, int32_t num_ranks);

  // Selects the rank's tokens of a step. `predictor` may be null here.
  void BeginStep(const TraceStep& step, Predictor* predictor);
  // Nothing, if the rank has no tokens in the step.
  void Observe(const TraceStep& step, int32_t layer, Predictor& predictor);
  // `index`: of the step in the trace. Ends sequences after their last step.
  void EndStep(size_t index, Predictor& predictor);

  bool has_tokens() const { return !rows_.empty(); }

 private:
  void Select(const TraceStep& step);

  const Trace& trace_;
  const int32_t rank_;
  const int32_t num_ranks_;
  absl::flat_hash_map<int64_t, size_t> last_step_;  // of a sequence
  // The step in work.
  std::vector<int64_t> rows_;
  std::vector<SequenceSlice> slices_;
  std::vector<float> embeddings_;
  // The layer in work.
  std::vector<float> probabilities_;
  std::vector<float> ahead1_;
  std::vector<float> ahead2_;
  std::vector<int32_t> experts_;
};

}  // namespace portolan
