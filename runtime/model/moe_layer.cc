#include "runtime/model/moe_layer.h"

#include <algorithm>
#include <utility>

#include "absl/time/time.h"
#include "runtime/base/steady_now.h"

namespace portolan {
namespace {

// From a handful of rows through shared memory to a stuck network, in seconds.
const double kExchangeBounds[] = {2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3,
                                  2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1,
                                  0.25, 0.5,  1,    2.5,  5,    10};

}  // namespace

MoeLayer::MoeLayer(TokenExchange& exchange, ExpertProvider& provider,
                   ExpertFfn& ffn, int32_t num_moe_layers, int32_t num_experts,
                   Hints hints)
    : exchange_(exchange),
      provider_(provider),
      ffn_(ffn),
      selections_by_layer_(static_cast<size_t>(num_moe_layers)),
      exchange_times_({std::begin(kExchangeBounds), std::end(kExchangeBounds)}),
      hints_(std::move(hints)),
      hint_sources_(static_cast<size_t>(exchange.transport().world_size())),
      scores_(static_cast<size_t>(num_experts)),
      first_of_expert_(static_cast<size_t>(num_experts) + 1) {
  needs_.reserve(static_cast<size_t>(num_experts));
  work_.reserve(static_cast<size_t>(num_experts));
}

absl::Status MoeLayer::Run(int32_t layer, const Routing& routing,
                           const ActivationView& rows,
                           std::span<const Fp16> hints, MatrixView<float> out) {
  const bool alone = exchange_.transport().world_size() == 1;
  const absl::Time begin = alone ? absl::Time() : SteadyNow();
  absl::Duration computing;
  const absl::Status status = exchange_.Run(
      layer, routing,
      {.data = rows.data, .stride_bytes = rows.stride * BytesOf(rows.dtype)},
      hints, out, [&](const ReceivedRows& received, MatrixView<float> results) {
        if (alone) return Compute(layer, rows, received, results);
        const absl::Time start = SteadyNow();
        absl::Status computed = Compute(layer, rows, received, results);
        computing += SteadyNow() - start;
        return computed;
      });
  if (!alone && status.ok()) {
    exchange_times_.Add(absl::ToDoubleSeconds(SteadyNow() - begin - computing));
  }
  return status;
}

void MoeLayer::BeginStep(int64_t tokens_of_all_ranks) {
  provider_.BeginStep(tokens_of_all_ranks);
  for (int32_t layer = 0; layer < hints_.step_layers; ++layer) {
    TakeHints(layer, layer + 1, [&](Rank rank) {
      return exchange_.received_step_hints(rank, layer);
    });
  }
  provider_.ReadAhead();
}

void MoeLayer::TakeHints(
    int32_t layer, int32_t distance,
    absl::FunctionRef<std::span<const Fp16>(Rank)> of_rank) {
  size_t num_sources = 0;
  for (size_t rank = 0; rank < hint_sources_.size(); ++rank) {
    const std::span<const Fp16> hints = of_rank(Rank{static_cast<int>(rank)});
    if (!hints.empty()) hint_sources_[num_sources++] = hints;
  }
  if (num_sources == 0) return;
  const auto num_layers = static_cast<int32_t>(selections_by_layer_.size());
  const std::span<const int32_t> owned =
      exchange_.owned_experts(layer % num_layers);
  merged_.resize(owned.size());
  MergeHints(hints_.merge, std::span(hint_sources_).first(num_sources),
             merged_);
  std::fill(scores_.begin(), scores_.end(), 0.0f);
  for (size_t i = 0; i < owned.size(); ++i) {
    scores_[static_cast<size_t>(owned[i])] = merged_[i];
  }
  provider_.OnHints(layer, distance, scores_);
}

// Those that came with the tokens of `layer`.
void MoeLayer::TakeLayerHints(int32_t layer) {
  for (size_t i = 0; i < hints_.distances.size(); ++i) {
    const int32_t target = layer + hints_.distances[i];
    if (target >= static_cast<int32_t>(selections_by_layer_.size())) break;
    TakeHints(target, hints_.distances[i], [&](Rank rank) {
      return exchange_.received_hints(rank, static_cast<int>(i));
    });
  }
}

absl::Status MoeLayer::Compute(int32_t layer, const ActivationView& form,
                               const ReceivedRows& received,
                               MatrixView<float> results) {
  if (received.round == 0) TakeLayerHints(layer);
  GroupByExpert(received.experts);
  selections_by_layer_[static_cast<size_t>(layer)] +=
      static_cast<int64_t>(received.experts.size());
  ActivationView x = form;
  x.data = const_cast<std::byte*>(received.rows.data);
  x.rows = received.num_rows;
  x.stride = received.rows.stride_bytes / BytesOf(form.dtype);
  return provider_.VisitRound(
      {layer, received.round, received.rounds}, needs_,
      [&](std::span<const ReadyExpert> ready) {
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
