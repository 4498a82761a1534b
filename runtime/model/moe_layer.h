#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/token_exchange.h"
#include "experts/expert_ffn.h"
#include "experts/expert_provider.h"
#include "runtime/base/fp16.h"
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
  // All must outlive the layer object.
  MoeLayer(TokenExchange& exchange, ExpertProvider& provider, ExpertFfn& ffn,
           int32_t num_layers, int32_t num_experts);

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

 private:
  absl::Status Compute(int32_t layer, const ActivationView& form,
                       const ReceivedRows& received, MatrixView<float> results);
  void GroupByExpert(std::span<const int32_t> experts);

  TokenExchange& exchange_;
  ExpertProvider& provider_;
  ExpertFfn& ffn_;
  std::vector<int64_t> selections_by_layer_;

  // Scratch of one round: the selections of each needed expert lie together.
  std::vector<int32_t> first_of_expert_;  // [num_experts + 1]
  std::vector<int32_t> selections_;       // grouped by expert
  std::vector<ExpertNeed> needs_;
  std::vector<ExpertFfn::Work> work_;
};

}  // namespace portolan
