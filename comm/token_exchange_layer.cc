// TokenExchange: the rounds of one layer, each dispatch, compute, combine.

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "comm/token_exchange.h"
#include "runtime/base/status_macros.h"

namespace portolan {

absl::Status TokenExchange::DoRun(int layer, const Routing& routing,
                                  const ActivationRows& rows,
                                  std::span<const Fp16> hints,
                                  MatrixView<float> out, Compute compute) {
  PORTOLAN_RETURN_IF_ERROR(CheckRouting(routing, options_.num_experts));
  if (routing.top_k > options_.top_k) {
    return absl::InvalidArgumentError(
        absl::StrCat("routing with top-", routing.top_k,
                     " in an exchange for top-", options_.top_k));
  }
  counts_ = ExchangeCounts{.tokens = routing.num_tokens};
  own_rounds_ = static_cast<int32_t>(std::max<int64_t>(
      1, (routing.num_tokens + round_tokens_ - 1) / round_tokens_));
  rounds_ = own_rounds_;
  for (round_ = 0; round_ < rounds_; ++round_) {
    const int64_t first =
        std::min(int64_t{round_} * round_tokens_, routing.num_tokens);
    const int64_t count =
        std::min<int64_t>(round_tokens_, routing.num_tokens - first);
    PORTOLAN_RETURN_IF_ERROR(
        world_ == 1
            ? RunAlone(layer, routing, first, count, rows, hints, out, compute)
            : RunRound(layer, routing, first, count, rows, hints, out,
                       compute));
    ++counts_.rounds;
  }
  return absl::OkStatus();
}

// A world of one computes on the caller's rows and sums its own results.
absl::Status TokenExchange::RunAlone(int layer, const Routing& routing,
                                     int64_t first, int64_t count,
                                     const ActivationRows& rows,
                                     std::span<const Fp16> hints,
                                     MatrixView<float> out, Compute compute) {
  if (round_ == 0) PORTOLAN_RETURN_IF_ERROR(KeepOwnHints(layer, hints));
  Enter(ExchangePhase::kHeader, layer);
  Enter(ExchangePhase::kPayload, layer);
  const auto top_k = static_cast<size_t>(routing.top_k);
  const size_t begin = static_cast<size_t>(first) * top_k;
  in_row_of_.resize(static_cast<size_t>(count) * top_k);
  for (size_t i = 0; i < in_row_of_.size(); ++i) {
    in_row_of_[i] = static_cast<int32_t>(i / top_k);
  }
  PORTOLAN_RETURN_IF_ERROR(CallCompute(
      layer,
      {.rows = {rows.data + first * rows.stride_bytes, rows.stride_bytes},
       .num_rows = count,
       .row_of = in_row_of_,
       .experts = routing.experts.subspan(begin, in_row_of_.size()),
       .round = round_,
       .rounds = rounds_},
      compute));
  Enter(ExchangePhase::kCombine, layer);
  const ProfileScope zone(options_.profile, Zone::kCombine, NameOf(layer));
  SumTokens(
      routing, first, count,
      [&](size_t selection) -> const float* {
        return ResultRow(results_, selection);
      },
      out);
  counts_.rows_out += count;
  return absl::OkStatus();
}

absl::Status TokenExchange::RunRound(int layer, const Routing& routing,
                                     int64_t first, int64_t count,
                                     const ActivationRows& rows,
                                     std::span<const Fp16> hints,
                                     MatrixView<float> out, Compute compute) {
  {
    const ProfileScope zone(options_.profile, Zone::kDispatch, NameOf(layer));
    PlanDispatch(routing, first, count, owner_[static_cast<size_t>(layer)],
                 static_cast<int>(world_), plan_);
    if (round_ > 0) hints = {};
    PORTOLAN_RETURN_IF_ERROR(ExchangeHeaders(layer, rows, hints));
    PORTOLAN_RETURN_IF_ERROR(LayOutReceived());
    PORTOLAN_RETURN_IF_ERROR(ExchangeRows(layer, rows));
  }
  PORTOLAN_RETURN_IF_ERROR(
      CallCompute(layer,
                  {.rows = {in_rows_.data(), options_.row_bytes},
                   .num_rows = in_row_begin_[world_],
                   .row_of = in_row_of_,
                   .experts = in_experts_,
                   .round = round_,
                   .rounds = rounds_},
                  compute));
  const ProfileScope zone(options_.profile, Zone::kCombine, NameOf(layer));
  PORTOLAN_RETURN_IF_ERROR(SumReceived());
  PORTOLAN_RETURN_IF_ERROR(ExchangeResults(layer));
  Combine(routing, first, count, out);
  return absl::OkStatus();
}

absl::Status TokenExchange::CallCompute(int layer, const ReceivedRows& received,
                                        Compute compute) {
  const auto selections = static_cast<int64_t>(received.experts.size());
  PORTOLAN_RETURN_IF_ERROR(Reserve(results_, selections * ResultBytes(1)));
  ClearMessages();
  Enter(ExchangePhase::kCompute, layer);
  const ProfileScope zone(options_.profile, Zone::kExperts, NameOf(layer));
  counts_.rows_in += received.num_rows;
  counts_.selections_in += selections;
  return compute(received,
                 MatrixView<float>(results_.As<float>().first(
                                       static_cast<size_t>(selections) *
                                       static_cast<size_t>(options_.hidden)),
                                   selections, options_.hidden));
}

}  // namespace portolan
