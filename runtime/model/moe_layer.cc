#include "runtime/model/moe_layer.h"

#include <algorithm>

namespace portolan {

MoeLayer::MoeLayer(TokenExchange& exchange, ExpertProvider& provider,
                   ExpertFfn& ffn, int32_t num_layers, int32_t num_experts)
    : exchange_(exchange),
      provider_(provider),
      ffn_(ffn),
      selections_by_layer_(static_cast<size_t>(num_layers)),
      first_of_expert_(static_cast<size_t>(num_experts) + 1) {
  needs_.reserve(static_cast<size_t>(num_experts));
  work_.reserve(static_cast<size_t>(num_experts));
}

absl::Status MoeLayer::Run(int32_t layer, const Routing& routing,
                           const ActivationView& rows,
                           std::span<const Fp16> hints, MatrixView<float> out) {
  return exchange_.Run(
      layer, routing,
      {.data = rows.data, .stride_bytes = rows.stride * BytesOf(rows.dtype)},
      hints, out, [&](const ReceivedRows& received, MatrixView<float> results) {
        return Compute(layer, rows, received, results);
      });
}

absl::Status MoeLayer::Compute(int32_t layer, const ActivationView& form,
                               const ReceivedRows& received,
                               MatrixView<float> results) {
  GroupByExpert(received.experts);
  selections_by_layer_[static_cast<size_t>(layer)] +=
      static_cast<int64_t>(received.experts.size());
  ActivationView x = form;
  x.data = const_cast<std::byte*>(received.rows.data);
  x.rows = received.num_rows;
  x.stride = received.rows.stride_bytes / BytesOf(form.dtype);
  return provider_.Visit(
      layer, needs_, [&](std::span<const ReadyExpert> ready) {
        work_.clear();
        for (const ReadyExpert& expert : ready) {
          const ExpertNeed& need = needs_[static_cast<size_t>(expert.need)];
          const auto first = static_cast<size_t>(
              first_of_expert_[static_cast<size_t>(need.expert)]);
          work_.push_back(
              {expert.slot,
               std::span<const int32_t>(selections_)
                   .subspan(first, static_cast<size_t>(need.num_rows))});
        }
        ffn_.Run(work_, x, received.row_of, results.data().data(),
                 results.cols());
        return absl::OkStatus();
      });
}

// Counting sort of the selections by expert; stable.
void MoeLayer::GroupByExpert(std::span<const int32_t> experts) {
  std::fill(first_of_expert_.begin(), first_of_expert_.end(), 0);
  for (const int32_t expert : experts) {
    ++first_of_expert_[static_cast<size_t>(expert) + 1];
  }
  needs_.clear();
  for (size_t expert = 0; expert + 1 < first_of_expert_.size(); ++expert) {
    const int32_t num_rows = first_of_expert_[expert + 1];
    if (num_rows > 0) {
      needs_.push_back({static_cast<int32_t>(expert), num_rows});
    }
    first_of_expert_[expert + 1] += first_of_expert_[expert];
  }
  selections_.resize(experts.size());
  // first_of_expert_ serves as the write cursor and is moved back afterwards.
  for (size_t s = 0; s < experts.size(); ++s) {
    const auto expert = static_cast<size_t>(experts[s]);
    selections_[static_cast<size_t>(first_of_expert_[expert]++)] =
        static_cast<int32_t>(s);
  }
  for (const ExpertNeed& need : needs_) {
    first_of_expert_[static_cast<size_t>(need.expert)] -= need.num_rows;
  }
}

}  // namespace portolan
