#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "experts/history.h"
#include "experts/history_mailbox.h"
#include "experts/history_record.h"
#include "experts/predictor.h"
#include "experts/sequence_context.h"
#include "runtime/model/forward_observer.h"

namespace portolan {

// Lets ranks and jobs learn from each other: sends a record of every finished
// sequence and of a few iterations to the mailbox, and puts what others sent
// into the history, a few rows after each step. Works with any policy.
//
// Thread-compatible.
class HistoryRecorder final : public ForwardObserver {
 public:
  // `history` and `mailbox` must outlive the recorder.
  HistoryRecorder(const RecordShape& shape, History& history,
                  HistoryMailbox& mailbox);

  // Puts everything that has come into the history.
  void ApplyAll();

  void OnEmbedding(std::span<const StepToken> tokens,
                   MatrixView<const float> embeddings) override;
  std::span<const Fp16> OnGate(const GateOutput& gate) override;
  void OnStepEnd() override;
  void OnSequenceEnd(int64_t sequence) override;

  // Rows that were no record of this model.
  int64_t num_refused() const { return num_refused_; }

 private:
  struct Sequence {
    explicit Sequence(const RecordShape& shape);
    SequenceContext context;
    SequenceRecord record;  // map: counts until the end
    int64_t num_tokens = 0;
  };
  struct Slice {
    Sequence* sequence = nullptr;
    int64_t first_row = 0;
    int64_t num_rows = 0;
    int64_t first_kept = 0;  // place of its first token in the record
  };

  void Apply(const HistoryRow& row);
  void SendUseful(HistoryFormat format, ExpertMapStore& store);

  const RecordShape shape_;
  History& history_;
  HistoryMailbox& mailbox_;
  std::map<int64_t, std::unique_ptr<Sequence>> sequences_;
  // The step in work.
  std::vector<int32_t> token_ids_;
  std::vector<SequenceSlice> cut_;
  std::vector<Slice> slices_;
  IterationRecord iteration_;  // of its first token
  int64_t steps_ = 0;
  int64_t num_refused_ = 0;
};

}  // namespace portolan
