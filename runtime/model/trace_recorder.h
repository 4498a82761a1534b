#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "experts/sequence_context.h"
#include "experts/trace.h"
#include "runtime/model/foresight.h"
#include "runtime/model/forward_observer.h"

namespace portolan {

// Records what one rank's gates said, step by step, and how long its layers
// took without waiting for experts. A trace that cannot be written any more is
// told once and then left; the run goes on.
//
// Thread-compatible.
class TraceRecorder final : public ForwardObserver {
 public:
  // stall: the time that compute has waited for experts so far.
  // notice: told of a file that cannot be written.
  TraceRecorder(std::unique_ptr<TraceWriter> writer, const TraceHeader& header,
                int32_t rank, std::function<absl::Duration()> stall,
                std::function<void(const absl::Status&)> notice);

  int look_ahead() const override { return header_.lookahead; }
  void OnEmbedding(std::span<const StepToken> tokens,
                   MatrixView<const float> embeddings) override;
  std::span<const Fp16> OnGate(const GateOutput& gate) override;
  void OnLayerEnd(int32_t layer) override;
  void OnStepEnd() override;
  void OnSequenceEnd(int64_t sequence) override;

 private:
  // Time since the last mark, less what was spent waiting for experts.
  float TakeTime();

  const std::unique_ptr<TraceWriter> writer_;
  const TraceHeader header_;
  const int32_t rank_;
  const std::function<absl::Duration()> stall_;
  const std::function<void(const absl::Status&)> notice_;
  TraceStep step_;
  std::vector<float> embeddings_;
  std::vector<SequenceSlice> slices_;
  std::vector<int32_t> token_ids_;
  std::map<int64_t, SequenceContext> contexts_;
  absl::Time mark_;
  absl::Duration stall_at_mark_;
};

}  // namespace portolan
