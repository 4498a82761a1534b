#include "runtime/model/trace_recorder.h"

#include <algorithm>
#include <utility>

#include "runtime/base/steady_now.h"

namespace portolan {
namespace {

void Halve(std::span<const float> from, std::vector<Fp16>& to) {
  to.resize(from.size());
  std::transform(from.begin(), from.end(), to.begin(),
                 [](float value) { return ToFp16(value); });
}

}  // namespace

TraceRecorder::TraceRecorder(std::unique_ptr<TraceWriter> writer,
                             const TraceHeader& header, int32_t rank,
                             std::function<absl::Duration()> stall,
                             std::function<void(const absl::Status&)> notice)
    : writer_(std::move(writer)),
      header_(header),
      rank_(rank),
      stall_(std::move(stall)),
      notice_(std::move(notice)),
      mark_(SteadyNow()) {
  step_.step = -1;
  step_.layers.resize(static_cast<size_t>(header.num_layers));
}

float TraceRecorder::TakeTime() {
  const absl::Time now = SteadyNow();
  const absl::Duration stall = stall_();
  const absl::Duration taken = now - mark_ - (stall - stall_at_mark_);
  mark_ = now;
  stall_at_mark_ = stall;
  return static_cast<float>(
      absl::ToDoubleSeconds(std::max(taken, absl::ZeroDuration())));
}

void TraceRecorder::OnEmbedding(std::span<const StepToken> tokens,
                                MatrixView<const float> embeddings) {
  TakeTime();
  ++step_.step;
  step_.slices.clear();
  step_.contexts.clear();
  SliceBySequence(tokens, token_ids_, slices_);
  step_.token_ids = token_ids_;
  embeddings_.assign(embeddings.data().begin(), embeddings.data().end());
  int64_t row = 0;
  for (const SequenceSlice& slice : slices_) {
    const auto num_tokens = static_cast<int32_t>(slice.token_ids.size());
    SequenceContext& context =
        contexts_.try_emplace(slice.sequence, header_.hidden).first->second;
    for (int32_t i = 0; i < num_tokens; ++i) {
      context.Append(embeddings.Row(row++));
    }
    step_.slices.push_back(
        {slice.sequence, rank_, slice.first_position, num_tokens});
    for (const float value : context.vector()) {
      step_.contexts.push_back(ToFp16(value));
    }
  }
}

std::span<const Fp16> TraceRecorder::OnGate(const GateOutput& gate) {
  TraceLayer& layer = step_.layers[static_cast<size_t>(gate.layer)];
  layer.gate_s = TakeTime();
  Halve(gate.probabilities.data(), layer.probabilities);
  Halve(gate.look_ahead[0].data(), layer.ahead1);
  Halve(gate.look_ahead[1].data(), layer.ahead2);
  Halve(gate.weights, layer.weights);
  layer.experts.assign(gate.experts.begin(), gate.experts.end());
  return {};
}

void TraceRecorder::OnLayerEnd(int32_t layer) {
  step_.layers[static_cast<size_t>(layer)].experts_s = TakeTime();
}

void TraceRecorder::OnStepEnd() {
  step_.tail_s = TakeTime();
  const absl::Status written =
      writer_->Append(step_, {embeddings_, step_.num_tokens(), header_.hidden});
  if (!written.ok()) notice_(written);
  TakeTime();  // writing is no part of the next step
}

void TraceRecorder::OnSequenceEnd(int64_t sequence) {
  contexts_.erase(sequence);
}

}  // namespace portolan
