#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "experts/expert_ffn.h"
#include "runtime/base/matrix_view.h"
#include "runtime/base/profile.h"
#include "runtime/kernels/kernels.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/dense_weights.h"
#include "runtime/model/forward_observer.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/moe_layer.h"

namespace portolan {

struct ForwardBuffers;

// Of which tokens of a sequence a step returns the logits.
enum class LogitRows { kNone, kLast, kAll };

// One sequence's share of a step: consecutive tokens whose keys and values are
// not in the KV cache yet, all earlier ones being there.
struct ForwardSequence {
  int64_t id = 0;
  std::span<const int32_t> tokens;
  int64_t first_position = 0;
  std::span<const int32_t> pages;  // of the KvCache, up to the last token
  LogitRows logits = LogitRows::kLast;
};

// Positions that a sequence can have: of the model, and of the KV cache.
int64_t RopePositions(const ModelConfig& config, int32_t kv_pages);

// The transformer: embedding, then per layer attention (KV cache) and the
// experts, then the logits. Written once for every backend and world size.
//
// A token's logits depend on its sequence alone: not on what else the step
// computes, how the prompt was cut into chunks, threads, ranks or CPU.
//
// A step is Begin() and Run(); between them the ranks exchange their step
// records, with what the observer foretold from the embeddings.
//
// Thread-compatible. Run() is collective: all ranks call it together.
class ForwardPass {
 public:
  struct Options {
    int64_t max_tokens = 0;      // of one step
    int64_t max_logit_rows = 0;  // of one step
    ActivationDtype activations = ActivationDtype::kBf16;
  };

  // All must outlive the pass; `observer` and `profile` may be
  // null.
  struct Parts {
    const ModelConfig& config;
    const DenseWeights& weights;
    Kernels& kernels;
    KvCache& kv;
    MoeLayer& moe;
    ForwardObserver* observer = nullptr;
    Profile* profile = nullptr;
  };

  static absl::StatusOr<std::unique_ptr<ForwardPass>> Create(
      const Options& options, const Parts& parts);

  ~ForwardPass();

  // Lines up the tokens of a step and embeds them; what `sequences` points to
  // must stay until Run() returns.
  void Begin(std::span<const ForwardSequence> sequences);

  // Runs the step that Begin() lined up; `tokens_of_all_ranks` as their step
  // records say. Returns the logits, [rows asked for, vocab], in the order of
  // the sequences; valid until the next Run().
  // Errors: as MoeLayer::Run().
  absl::StatusOr<MatrixView<const float>> Run(int64_t tokens_of_all_ranks);

  // Tokens of the step that Begin() lined up.
  int64_t num_tokens() const;

  // Of the table of rotary positions, full.
  int64_t rope_bytes() const;

 private:
  ForwardPass(const Options& options, const Parts& parts);
  absl::Status Allocate();
  int LookAhead() const;

  void Place();
  void Embed();
  void NormBlockInput(int32_t layer);
  void Attend(int32_t layer);
  void RotateAndStore(int32_t layer);
  void PointToPages(int32_t layer);
  void NormExpertInput(int32_t layer);
  absl::Status RunExperts(int32_t layer, int32_t moe_layer);
  void RunDenseBlock(int32_t layer);
  GateOutput RunGate(int32_t layer, int32_t moe_layer);
  ActivationView GateInput(MatrixView<float> normed);
  void ComputeGate(int32_t layer, MatrixView<float> normed,
                   MatrixView<float> probabilities);
  void LookAheadFrom(int32_t layer, GateOutput& gate);
  MatrixView<const float> Logits();

  const Options options_;
  const Parts parts_;
  const KvLayout kv_layout_;
  const float attention_scale_;
  std::unique_ptr<RopeTable> rope_;
  std::unique_ptr<ExpertFfn> dense_ffn_;  // null without dense layers
  std::unique_ptr<ForwardBuffers> buffers_;
};

}  // namespace portolan
