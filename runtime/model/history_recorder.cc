#include "runtime/model/history_recorder.h"

#include <algorithm>

#include "absl/status/statusor.h"
#include "runtime/model/foresight.h"

namespace portolan {
namespace {

// Iterations of one sequence resemble each other: one in so many is sent.
constexpr int64_t kIterationInterval = 16;
// Rows put into the history after a step: the time of some microseconds each.
constexpr size_t kRowsPerStep = 8;

}  // namespace

HistoryRecorder::Sequence::Sequence(const RecordShape& shape)
    : context(shape.hidden) {
  record.map.resize(static_cast<size_t>(shape.num_layers) *
                    static_cast<size_t>(shape.num_experts));
  // Once for the sequence, so that no token allocates.
  record.tokens.reserve(kMaxRecordTokens);
  record.experts.reserve(kMaxRecordTokens *
                         static_cast<size_t>(shape.num_layers) *
                         static_cast<size_t>(shape.top_k));
}

HistoryRecorder::HistoryRecorder(const RecordShape& shape, History& history,
                                 HistoryMailbox& mailbox)
    : shape_(shape), history_(history), mailbox_(mailbox) {
  iteration_.map.resize(static_cast<size_t>(shape.num_layers) *
                        static_cast<size_t>(shape.num_experts));
}

void HistoryRecorder::ApplyAll() {
  while (true) {
    const std::vector<HistoryRow> rows = mailbox_.TakeIncoming(64);
    if (rows.empty()) return;
    for (const HistoryRow& row : rows) Apply(row);
  }
}

void HistoryRecorder::Apply(const HistoryRow& row) {
  if (row.format == HistoryFormat::kSequence) {
    const auto record = DecodeSequence(shape_, row.key, row.map);
    if (record.ok()) return history_.Learn(*record, row.id);
  } else if (row.format == HistoryFormat::kIteration) {
    const auto record = DecodeIteration(shape_, row.key, row.map);
    if (record.ok()) return history_.Learn(*record, row.id);
  }
  ++num_refused_;
}

void HistoryRecorder::OnEmbedding(std::span<const StepToken> tokens,
                                  MatrixView<const float> embeddings) {
  SliceBySequence(tokens, token_ids_, cut_);
  slices_.clear();
  int64_t row = 0;
  for (const SequenceSlice& slice : cut_) {
    std::unique_ptr<Sequence>& sequence = sequences_[slice.sequence];
    if (sequence == nullptr) sequence = std::make_unique<Sequence>(shape_);
    SequenceRecord& record = sequence->record;
    slices_.push_back({.sequence = sequence.get(),
                       .first_row = row,
                       .num_rows = std::ssize(slice.token_ids),
                       .first_kept = std::ssize(record.tokens)});
    for (const int32_t token : slice.token_ids) {
      sequence->context.Append(embeddings.Row(row++));
      if (std::ssize(record.tokens) < kMaxRecordTokens) {
        record.tokens.push_back(token);
      }
    }
    record.experts.resize(record.tokens.size() *
                          static_cast<size_t>(shape_.num_layers) *
                          static_cast<size_t>(shape_.top_k));
    sequence->num_tokens += std::ssize(slice.token_ids);
  }
  if (row > 0) {
    const std::span<const float> first = embeddings.Row(0);
    iteration_.embedding.assign(first.begin(), first.end());
  }
}

std::span<const Fp16> HistoryRecorder::OnGate(const GateOutput& gate) {
  const auto top_k = static_cast<size_t>(shape_.top_k);
  const auto experts = static_cast<size_t>(shape_.num_experts);
  const auto layer = static_cast<size_t>(gate.layer);
  for (const Slice& slice : slices_) {
    SequenceRecord& record = slice.sequence->record;
    for (int64_t i = 0; i < slice.num_rows; ++i) {
      const std::span<const int32_t> chosen = gate.experts.subspan(
          static_cast<size_t>(slice.first_row + i) * top_k, top_k);
      for (const int32_t expert : chosen) {
        record.map[layer * experts + static_cast<size_t>(expert)] += 1;
      }
      const auto kept = static_cast<size_t>(slice.first_kept + i);
      if (kept >= record.tokens.size()) continue;
      const size_t place =
          (kept * static_cast<size_t>(shape_.num_layers) + layer) * top_k;
      std::ranges::copy(
          chosen, record.experts.begin() + static_cast<std::ptrdiff_t>(place));
    }
  }
  if (!slices_.empty()) {
    const std::span<const float> row = gate.probabilities.Row(0);
    float sum = 0;
    for (const float p : row) sum += p;
    const float scale = sum > 0 ? 1 / sum : 0.0f;
    std::ranges::transform(
        row,
        iteration_.map.begin() + static_cast<std::ptrdiff_t>(layer * experts),
        [scale](float p) { return p * scale; });
  }
  return {};
}

void HistoryRecorder::SendUseful(HistoryFormat format, ExpertMapStore& store) {
  mailbox_.SendUseful(format, store.useful());
  store.ClearUseful();
}

void HistoryRecorder::OnStepEnd() {
  if (!slices_.empty() && steps_++ % kIterationInterval == 0) {
    mailbox_.Send(EncodeRecord(shape_, iteration_));
  }
  slices_.clear();
  SendUseful(HistoryFormat::kIteration, history_.iterations());
  SendUseful(HistoryFormat::kSequence, history_.sequences());
  for (const HistoryRow& row : mailbox_.TakeIncoming(kRowsPerStep)) Apply(row);
}

void HistoryRecorder::OnSequenceEnd(int64_t sequence) {
  const auto found = sequences_.find(sequence);
  if (found == sequences_.end()) return;
  Sequence& ended = *found->second;
  ended.record.context.assign(ended.context.vector().begin(),
                              ended.context.vector().end());
  const float scale = 1.0f / static_cast<float>(ended.num_tokens);
  for (float& count : ended.record.map) count *= scale;
  mailbox_.Send(EncodeRecord(shape_, ended.record));
  sequences_.erase(found);
}

}  // namespace portolan
