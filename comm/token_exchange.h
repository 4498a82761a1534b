#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/dispatch_plan.h"
#include "comm/exchange_options.h"
#include "comm/hints.h"
#include "comm/message.h"
#include "comm/transport.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/fp16.h"
#include "runtime/base/ids.h"
#include "runtime/base/matrix_view.h"

namespace portolan {

// Rows that somebody else owns: row i begins at data + i * stride_bytes.
struct ActivationRows {
  const std::byte* data = nullptr;
  int64_t stride_bytes = 0;
};

// What arrived at this rank in one round: by source rank, then token, then
// top-k order. Selections of one row follow each other.
struct ReceivedRows {
  ActivationRows rows;
  int64_t num_rows = 0;
  std::span<const int32_t> row_of;   // [num_selections]
  std::span<const int32_t> experts;  // [num_selections] index in the layer
  int32_t round = 0;                 // of `rounds` of this layer
  int32_t rounds = 1;
};

// One rank's word to all others at the begin of a step.
struct StepRecord {
  bool has_work = false;
  bool drain = false;
  absl::Status abort = {};   // not OK: the job ends with it
  int64_t rows_planned = 0;  // tokens of this step
  bool has_output = false;   // something to collect between two steps
  uint64_t placement_version = 0;
};

// Sizes of the last Run(), of this rank.
struct ExchangeCounts {
  int32_t rounds = 0;
  int64_t tokens = 0;
  int64_t rows_out = 0;  // to all ranks, this one included
  int64_t rows_out_remote = 0;
  int64_t selections_out_remote = 0;
  int64_t rows_in = 0;  // from all ranks
  int64_t selections_in = 0;
};

// Moves the activation rows of a batch to the ranks that hold their experts and
// the results back: the two exchanges around the experts of an MoE layer. One
// message per pair of ranks and direction when rows are few, two when many.
//
// Collective: every rank makes the same calls in the same order, also with zero
// tokens. All memory is kept between calls; nothing is allocated per token once
// the largest batch has passed.
//
// Errors, after which every later call returns the same error: those of
// Transport; kInternal for a message that does not fit, naming sender, host,
// phase, layer, step and both values; the
// status of a failed compute(), or the status with which a peer failed, named.
// A rank that fails tells all others by its next message.
//
// On one thread only, which has its denormals flushed and is the pool's caller.
class TokenExchange {
 public:
  using Compute = absl::FunctionRef<absl::Status(const ReceivedRows& received,
                                                 MatrixView<float> results)>;

  // Collective. `transport` must outlive the exchange.
  // Errors: kInvalidArgument (options), kFailedPrecondition on all ranks,
  // naming the odd rank, if model, numerics, shapes or flags differ;
  // kResourceExhausted; as Transport.
  static absl::StatusOr<std::unique_ptr<TokenExchange>> Create(
      Transport& transport, ExchangeOptions options, OwnerTable owner);
  ~TokenExchange();

  // Begins the next step and returns the records of all ranks, valid until the
  // next call. hints: [step_hint_layers, num_experts], or empty.
  absl::StatusOr<std::span<const StepRecord>> BeginStep(
      const StepRecord& mine, std::span<const Fp16> hints = {});

  // The exchange of one layer: dispatch, compute, combine.
  //   rows     [num_tokens] activation rows of row_bytes
  //   hints    [hint_distances, num_experts] for the layers ahead, or empty;
  //            what lies beyond the last layer is not sent
  //   out      [num_tokens, hidden], overwritten
  //   compute  called once per round, also with zero rows: fills results,
  //            [num_selections, hidden], one row per selection
  absl::Status Run(int layer, const Routing& routing,
                   const ActivationRows& rows, std::span<const Fp16> hints,
                   MatrixView<float> out, Compute compute);

  // Hints of `source` (this rank included) for this rank's experts, one for
  // each of owned_experts() of the layer: with the header of the layer last
  // run, for layer + hint_distances[distance]; with the step record, for
  // `layer`. Empty if none came. Valid until the next Run() or BeginStep(); it
  // may be called inside compute.
  std::span<const Fp16> received_hints(Rank source, int distance) const {
    return hints_.Layer(static_cast<size_t>(ToIndex(source)), distance);
  }
  std::span<const Fp16> received_step_hints(Rank source, int layer) const {
    return hints_.Step(static_cast<size_t>(ToIndex(source)), layer);
  }

  // This rank's experts of a layer, in rising order.
  std::span<const int32_t> owned_experts(int layer) const {
    return hints_.owned_experts(layer);
  }

  // Ends the job: the next message of this rank to every other is `status`.
  void Abort(const absl::Status& status);

  int64_t step() const { return step_; }
  const ExchangeCounts& counts() const { return counts_; }
  int32_t round_tokens() const { return round_tokens_; }
  Transport& transport() { return transport_; }

 private:
  // What one rank sent in the dispatch of the current round.
  struct Incoming {
    int32_t rows = 0;
    int32_t num_selections = 0;
    std::span<const std::byte> selections = {};  // experts, row_of, [weights]
    std::span<const std::byte> inline_rows = {};
  };

  TokenExchange(Transport& transport, ExchangeOptions options,
                OwnerTable owner);
  absl::Status AgreeWithAll();
  absl::Status AllocateMessages();

  absl::Status DoBeginStep(const StepRecord& mine, std::span<const Fp16> hints);
  void WriteStepRecord(size_t peer, const StepRecord& mine,
                       std::span<const Fp16> hints);
  absl::Status ReadStepRecord(size_t peer);

  absl::Status DoRun(int layer, const Routing& routing,
                     const ActivationRows& rows, std::span<const Fp16> hints,
                     MatrixView<float> out, Compute compute);
  absl::Status RunAlone(int layer, const Routing& routing, int64_t first,
                        int64_t count, const ActivationRows& rows,
                        std::span<const Fp16> hints, MatrixView<float> out,
                        Compute compute);
  absl::Status RunRound(int layer, const Routing& routing, int64_t first,
                        int64_t count, const ActivationRows& rows,
                        std::span<const Fp16> hints, MatrixView<float> out,
                        Compute compute);
  absl::Status CallCompute(int layer, const ReceivedRows& received,
                           Compute compute);

  absl::Status ExchangeHeaders(int layer, const ActivationRows& rows,
                               std::span<const Fp16> hints);
  std::span<const std::byte> WriteDispatch(int layer, size_t peer,
                                           const ActivationRows& rows,
                                           std::span<const Fp16> hints);
  std::byte* PackRows(size_t peer, const ActivationRows& rows,
                      std::byte* to) const;
  absl::Status ReadDispatch(int layer, size_t peer);
  absl::Status CheckSelections(int layer, size_t peer) const;
  absl::Status LayOutReceived();
  void AppendSelections(size_t peer, const int32_t* experts,
                        const int32_t* row_of, const float* weights);
  absl::Status ExchangeRows(int layer, const ActivationRows& rows);

  absl::Status SumReceived();
  absl::Status ExchangeResults(int layer);
  std::span<const std::byte> WriteCombine(int layer, size_t peer,
                                          const AlignedBuffer& results,
                                          int32_t begin, int32_t count);
  absl::StatusOr<const float*> ReadCombine(int layer, size_t peer,
                                           int32_t begin, int32_t count);
  absl::Status ExchangeResultRows(int layer, const AlignedBuffer& results,
                                  const std::vector<int32_t>& out_begin,
                                  const std::vector<int32_t>& back_begin);
  void Combine(const Routing& routing, int64_t first, int64_t count,
               MatrixView<float> out);
  // out[first + i] = the weighted result rows of token i, by its selections.
  void SumTokens(const Routing& routing, int64_t first, int64_t count,
                 absl::FunctionRef<const float*(size_t selection)> result_row,
                 MatrixView<float> out);

  // Exchanges send_ and recv_; the second checks that recv_ was filled.
  absl::Status Exchange(ExchangePhase phase, int layer);
  absl::Status ExchangeExact(ExchangePhase phase, int layer, bool enter = true);
  absl::Status Transfer(ExchangePhase phase, int layer);
  void ClearMessages();
  void Enter(ExchangePhase phase, int layer);
  absl::Status FindAbort() const;
  absl::Status Break(absl::Status status);
  void SendAborts(const absl::Status& status);

  absl::StatusOr<MessageHeader> ReadHeader(size_t peer) const;
  absl::Status CheckSize(size_t peer, size_t want) const;
  absl::Status Blame(size_t peer, const absl::Status& status) const;
  absl::Duration TimeForStep() const;
  absl::Status KeepOwnHints(int layer, std::span<const Fp16> hints);
  absl::Status Reserve(AlignedBuffer& buffer, int64_t bytes);
  int32_t NameOf(int layer) const;
  MessageHeader Header(MessageKind kind, int layer) const;
  WaitContext Context(ExchangePhase phase, int layer) const;
  std::string Name(size_t rank) const;

  static size_t HintBytes(size_t values);
  size_t SelectionBytes(int64_t selections) const;
  int64_t ResultBytes(int64_t rows) const {
    return rows * options_.hidden * static_cast<int64_t>(sizeof(float));
  }
  bool Inlined(int64_t bytes) const { return bytes <= options_.eager_bytes; }
  std::span<std::byte> Message(const AlignedBuffer& buffer, size_t peer) const {
    return buffer.bytes().subspan(peer * message_bytes_, message_bytes_);
  }
  float* ResultRow(const AlignedBuffer& buffer, size_t row) const {
    return reinterpret_cast<float*>(buffer.data()) +
           row * static_cast<size_t>(options_.hidden);
  }

  Transport& transport_;
  const ExchangeOptions options_;
  const OwnerTable owner_;
  const size_t world_;
  const size_t self_;
  int32_t round_tokens_ = 0;
  size_t message_bytes_ = 0;

  absl::Status broken_;
  bool peer_aborted_ = false;
  int64_t step_ = -1;
  ExchangePhase phase_ = ExchangePhase::kStepRecord;  // entered last
  int32_t layer_ = -1;
  uint64_t placement_version_ = 0;
  absl::Time step_deadline_ = absl::InfiniteFuture();
  std::vector<StepRecord> records_;  // [world]
  std::vector<int64_t> load_us_;     // [world] of an expert; 0: none is loaded
  ExchangeCounts counts_;

  // The current exchange of messages, [world] each.
  std::vector<std::span<const std::byte>> send_;
  std::vector<std::span<std::byte>> recv_;
  std::vector<size_t> received_;
  AlignedBuffer out_messages_, in_messages_;  // [world, message_bytes_]

  // The current round.
  int32_t round_ = 0;
  int32_t own_rounds_ = 1;            // that this rank's tokens need
  int32_t rounds_ = 1;                // that some rank's tokens need
  std::vector<int32_t> peer_rounds_;  // [world], as said in the first round
  DispatchPlan plan_;
  std::vector<Incoming> incoming_;         // [world]
  std::vector<int32_t> in_row_begin_;      // [world + 1]
  std::vector<int32_t> in_begin_;          // [world + 1] selections
  std::vector<int32_t> in_row_of_;         // [selections]
  std::vector<int32_t> in_experts_;        // [selections]
  std::vector<float> in_weights_;          // [selections], kReduced
  AlignedBuffer out_rows_, in_rows_;       // activation rows
  AlignedBuffer results_;                  // [selections in, hidden]
  AlignedBuffer sums_;                     // [rows in, hidden], kReduced
  AlignedBuffer returned_;                 // [selections or rows out, hidden]
  std::vector<const float*> result_rows_;  // [selections or rows out]
  std::vector<const float*> terms_;        // [threads, top_k]

  HintBoard hints_;
};

}  // namespace portolan
