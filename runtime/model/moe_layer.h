#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "comm/token_exchange.h"
#include "experts/expert_ffn.h"
#include "experts/expert_provider.h"
#include "experts/hints.h"
#include "runtime/base/fp16.h"
#include "runtime/base/histogram.h"
#include "runtime/base/matrix_view.h"
#include "runtime/kernels/activation.h"

namespace portolan {

// The experts of a layer: where the exchange of tokens and the expert weights
// meet. Sends each token to the ranks that own its experts, runs the experts
// that are asked for here, and brings the results home.
//
// Thread-compatible. Run() is collective.
class MoeLayer {
 public:
  // What the ranks foretell each other (TokenExchange has the same figures).
  struct Hints {
    HintMerge merge = HintMerge::kSum;
    std::vector<int32_t> distances;  // empty: no hints
    int32_t step_layers = 0;
  };

  // All must outlive the layer object.
  MoeLayer(TokenExchange& exchange, ExpertProvider& provider, ExpertFfn& ffn,
           int32_t num_moe_layers, int32_t num_experts, Hints hints);

  // A step of so many tokens begins, whose records have been exchanged: hands
  // the hints for the first layers to the provider.
  void BeginStep(int64_t tokens_of_all_ranks);

  // layer: among the MoE layers, as everywhere here.
  // rows: this rank's tokens, as they enter the experts.
  // out: [tokens, hidden], overwritten with the weighted sum of the experts.
  // Errors: as TokenExchange::Run(), ExpertProvider::Visit().
  absl::Status Run(int32_t layer, const Routing& routing,
                   const ActivationView& rows, std::span<const Fp16> hints,
                   MatrixView<float> out);

  // Selections that this rank computed so far, by layer.
  const std::vector<int64_t>& selections_by_layer() const {
    return selections_by_layer_;
  }

  // Seconds that each Run() so far took, less the computing of experts here:
  // the exchange itself and the waiting for other ranks. Nothing where there
  // are none.
  const Histogram& exchange_times() const { return exchange_times_; }

 private:
  absl::Status Compute(int32_t layer, const ActivationView& form,
                       const ReceivedRows& received, MatrixView<float> results);
  // Merges what all ranks foretold for `layer`, which `of_rank` gives per rank.
  void TakeHints(int32_t layer, int32_t distance,
                 absl::FunctionRef<std::span<const Fp16>(Rank)> of_rank);
  void TakeLayerHints(int32_t layer);
  void GroupByExpert(std::span<const int32_t> experts);

  TokenExchange& exchange_;
  ExpertProvider& provider_;
  ExpertFfn& ffn_;
  std::vector<int64_t> selections_by_layer_;
  Histogram exchange_times_;

  const Hints hints_;
  std::vector<std::span<const Fp16>> hint_sources_;  // [world]
  std::vector<float> merged_;                        // [owned experts]
  std::vector<float> scores_;                        // [num_experts]

  // Scratch of one round: the selections of each needed expert lie together.
  std::vector<int32_t> first_of_expert_;  // [num_experts + 1]
  std::vector<int32_t> selections_;       // grouped by expert
  std::vector<ExpertNeed> needs_;
  std::vector<ExpertFfn::Work> work_;
};

}  // namespace portolan
