#ifndef PORTOLAN_LAUNCHER_BENCH_LOCK_STEP_H_
#define PORTOLAN_LAUNCHER_BENCH_LOCK_STEP_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launcher/wiring.h"
#include "launcher/zone_report.h"
#include "runtime/base/matrix_view.h"
#include "runtime/model/forward.h"

namespace portolan {

// What `portolan bench model` makes every rank compute.
struct BenchLoad {
  int32_t batch = 1;            // sequences
  int64_t prompt_tokens = 128;  // of each
  int64_t generate = 128;       // tokens decoded after each prompt
  int64_t tokens_per_step = 0;  // most of a prefill step
  // New tokens in every round. The same ones would find just the experts that
  // they had left in slots, and whoever predicts would know them.
  bool new_tokens = false;
};

// One phase of a round on one rank.
struct PhaseFigures {
  double tokens_per_s = 0;
  double disk_bytes_per_token = 0;  // read by this process
  int64_t steps = 0;
  ZoneTotals zones;  // with --profile
};

struct BenchRound {
  PhaseFigures prefill;
  PhaseFigures decode;
};

// The sequences of one rank, driven in lock-step with the other ranks: first
// all prompts, then one token a step for each. Greedy sampling is not part of
// the figures; the tokens are random, with a fixed seed.
// One thread; `rank` outlives it. Errors are those of the exchange.
class LockStep {
 public:
  LockStep(const BenchLoad& load, const Model& model, RankRuntime& rank,
           int rank_index);

  absl::StatusOr<BenchRound> Run();

  // Computes the first sequence of the last round anew, all of it as a prompt:
  // the same logits must come out as from decoding it beside the others.
  absl::Status Verify();

  // Logits of the ends of rounds that were not those of the first round, and
  // those that Verify() found.
  int64_t num_wrong() const { return num_wrong_; }

 private:
  struct Sequence {
    int64_t id = 0;
    std::vector<int32_t> tokens;
    std::vector<int32_t> pages;
    int64_t computed = 0;
  };

  void DrawTokens();
  void EndSequences();
  // `tokens`: of each sequence.
  absl::StatusOr<PhaseFigures> Measure(int64_t tokens,
                                       absl::FunctionRef<absl::Status()> phase);
  ZoneTotals Zones() const;
  // As many prompt tokens a step as the limit allows, sequence by sequence.
  absl::Status Prefill();
  absl::Status Decode();
  void Schedule(Sequence& sequence, int64_t count);
  absl::Status RunStep();
  void CountWrong(std::span<const uint32_t> bits,
                  std::span<const uint32_t> expected);
  // Where every round has the same tokens, it ends with the same bits.
  void CheckLogits();

  const BenchLoad load_;
  const uint64_t vocab_;
  RankRuntime& rank_;
  const uint64_t rank_index_;
  int64_t next_id_ = 0;
  uint64_t num_drawn_ = 0;
  std::vector<Sequence> sequences_;
  std::vector<ForwardSequence> step_;
  int64_t num_steps_ = 0;
  MatrixView<const float> logits_;    // of the last step
  std::vector<uint32_t> first_bits_;  // of all sequences, first round
  std::vector<uint32_t> last_bits_;   // likewise, last round
  int64_t num_wrong_ = 0;
};

}  // namespace portolan

#endif  // PORTOLAN_LAUNCHER_BENCH_LOCK_STEP_H_
