// The part of TokenExchange that moves the rows of one layer.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "comm/combine.h"
#include "comm/token_exchange.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

template <typename T>
std::byte* Append(std::byte* to, std::span<const T> values) {
  if (!values.empty()) std::memcpy(to, values.data(), values.size_bytes());
  return to + values.size_bytes();
}

template <typename T>
std::span<const T> Cut(const std::vector<T>& all, int32_t begin,
                       int32_t count) {
  return std::span<const T>(all).subspan(static_cast<size_t>(begin),
                                         static_cast<size_t>(count));
}

}  // namespace

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
  for (int64_t token = 0; token < count; ++token) {
    const size_t at = static_cast<size_t>(token) * top_k;
    for (size_t k = 0; k < top_k; ++k) terms_[k] = ResultRow(results_, at + k);
    WeightedSum(routing.weights.subspan(begin + at, top_k),
                std::span(terms_).first(top_k), out.Row(first + token));
  }
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

// Dispatch.

absl::Status TokenExchange::ExchangeHeaders(int layer,
                                            const ActivationRows& rows,
                                            std::span<const Fp16> hints) {
  ClearMessages();
  for (size_t peer = 0; peer < world_; ++peer) {
    if (peer == self_) continue;
    send_[peer] = WriteDispatch(layer, peer, rows, hints);
    recv_[peer] = Message(in_messages_, peer);
  }
  if (round_ == 0) PORTOLAN_RETURN_IF_ERROR(KeepOwnHints(layer, hints));
  PORTOLAN_RETURN_IF_ERROR(Exchange(ExchangePhase::kHeader, layer));
  for (size_t peer = 0; peer < world_; ++peer) {
    if (peer == self_) continue;
    PORTOLAN_RETURN_IF_ERROR(Blame(peer, ReadDispatch(layer, peer)));
  }
  return absl::OkStatus();
}

// Layout: header, hints, experts, row_of, [weights], [rows].
std::span<const std::byte> TokenExchange::WriteDispatch(
    int layer, size_t peer, const ActivationRows& rows,
    std::span<const Fp16> hints) {
  const Rank rank{static_cast<int32_t>(peer)};
  const auto message = Message(out_messages_, peer);
  MessageHeader header = Header(MessageKind::kDispatch, layer);
  header.rows = plan_.num_rows(rank);
  header.selections = plan_.num_selections(rank);
  header.rounds = own_rounds_;
  std::byte* end = message.data() + sizeof(header);
  const size_t count = hints_.Write(
      hints, layer, peer, {reinterpret_cast<Fp16*>(end), hints_.max_values()});
  header.hints = static_cast<int32_t>(count);
  std::memcpy(message.data(), &header, sizeof(header));
  end += HintBytes(count);

  const int32_t begin = plan_.selection_begin[peer];
  end = Append(end, Cut(plan_.experts, begin, header.selections));
  end = Append(end, Cut(plan_.row_of, begin, header.selections));
  if (options_.combine == CombineMode::kReduced) {
    end = Append(end, Cut(plan_.weights, begin, header.selections));
  }
  if (Inlined(header.rows * options_.row_bytes)) {
    end = PackRows(peer, rows, end);
  }
  counts_.rows_out_remote += header.rows;
  counts_.selections_out_remote += header.selections;
  return message.first(static_cast<size_t>(end - message.data()));
}

std::byte* TokenExchange::PackRows(size_t peer, const ActivationRows& rows,
                                   std::byte* to) const {
  const int32_t begin = plan_.row_begin[peer];
  const auto row_bytes = static_cast<size_t>(options_.row_bytes);
  for (const int32_t token :
       Cut(plan_.tokens, begin, plan_.row_begin[peer + 1] - begin)) {
    std::memcpy(to, rows.data + token * rows.stride_bytes, row_bytes);
    to += row_bytes;
  }
  return to;
}

absl::Status TokenExchange::ReadDispatch(int layer, size_t peer) {
  PORTOLAN_ASSIGN_OR_RETURN(const MessageHeader got, ReadHeader(peer));
  PORTOLAN_RETURN_IF_ERROR(
      CheckHeader(got, Header(MessageKind::kDispatch, layer)));
  if (got.rows > round_tokens_ ||
      got.selections > int64_t{got.rows} * options_.top_k) {
    return absl::InternalError(absl::StrCat(
        "sent a header with ", got.rows, " rows and ", got.selections,
        " selections in rounds of ", round_tokens_));
  }
  if (round_ == 0) peer_rounds_[peer] = got.rounds;
  if (got.rounds != peer_rounds_[peer] ||
      (round_ >= got.rounds && got.rows > 0)) {
    return absl::InternalError(absl::StrCat(
        "sent a header with ", got.rows, " rows in round ", round_, " of ",
        got.rounds, " where it began with ", peer_rounds_[peer], " rounds"));
  }
  const int64_t row_bytes = got.rows * options_.row_bytes;
  const size_t hint_bytes = HintBytes(static_cast<size_t>(got.hints));
  const size_t selection_bytes = SelectionBytes(got.selections);
  PORTOLAN_RETURN_IF_ERROR(CheckSize(
      peer, sizeof(got) + hint_bytes + selection_bytes +
                (Inlined(row_bytes) ? static_cast<size_t>(row_bytes) : 0)));
  const std::span<const std::byte> body =
      recv_[peer].first(received_[peer]).subspan(sizeof(got));
  if (round_ == 0) {
    PORTOLAN_RETURN_IF_ERROR(
        hints_.Read(layer, peer,
                    {reinterpret_cast<const Fp16*>(body.data()),
                     static_cast<size_t>(got.hints)}));
  }
  incoming_[peer] = {.rows = got.rows,
                     .num_selections = got.selections,
                     .selections = body.subspan(hint_bytes, selection_bytes),
                     .inline_rows = body.subspan(hint_bytes + selection_bytes)};
  rounds_ = std::max(rounds_, got.rounds);
  return CheckSelections(layer, peer);
}

absl::Status TokenExchange::CheckSelections(int layer, size_t peer) const {
  const Incoming& in = incoming_[peer];
  const auto* experts = reinterpret_cast<const int32_t*>(in.selections.data());
  const int32_t* row_of = experts + in.num_selections;
  const auto& owner = owner_[static_cast<size_t>(layer)];
  for (int32_t i = 0; i < in.num_selections; ++i) {
    if (experts[i] < 0 || experts[i] >= options_.num_experts ||
        ToIndex(owner[static_cast<size_t>(experts[i])]) !=
            static_cast<int>(self_)) {
      return absl::InternalError(
          absl::StrCat("sent a row for expert ", experts[i], " of layer ",
                       layer, ", which rank ", self_, " does not hold"));
    }
    if (row_of[i] < 0 || row_of[i] >= in.rows) {
      return absl::InternalError(
          absl::StrCat("sent a selection of row ", row_of[i], " of ", in.rows));
    }
  }
  return absl::OkStatus();
}

// Places what arrives by source rank, this rank included.
absl::Status TokenExchange::LayOutReceived() {
  const Rank self{static_cast<int32_t>(self_)};
  incoming_[self_] = {.rows = plan_.num_rows(self),
                      .num_selections = plan_.num_selections(self)};
  in_row_of_.clear();
  in_experts_.clear();
  in_weights_.clear();
  for (size_t peer = 0; peer < world_; ++peer) {
    const Incoming& in = incoming_[peer];
    in_row_begin_[peer + 1] = in_row_begin_[peer] + in.rows;
    in_begin_[peer + 1] = in_begin_[peer] + in.num_selections;
    if (peer == self_) {
      const int32_t begin = plan_.selection_begin[self_];
      AppendSelections(peer,
                       Cut(plan_.experts, begin, in.num_selections).data(),
                       Cut(plan_.row_of, begin, in.num_selections).data(),
                       Cut(plan_.weights, begin, in.num_selections).data());
    } else {
      const auto* experts =
          reinterpret_cast<const int32_t*>(in.selections.data());
      const int32_t* row_of = experts + in.num_selections;
      AppendSelections(
          peer, experts, row_of,
          reinterpret_cast<const float*>(row_of + in.num_selections));
    }
  }
  counts_.rows_out += plan_.row_begin[world_];
  return Reserve(in_rows_, in_row_begin_[world_] * options_.row_bytes);
}

void TokenExchange::AppendSelections(size_t peer, const int32_t* experts,
                                     const int32_t* row_of,
                                     const float* weights) {
  const int32_t count = incoming_[peer].num_selections;
  in_experts_.insert(in_experts_.end(), experts, experts + count);
  for (int32_t i = 0; i < count; ++i) {
    in_row_of_.push_back(in_row_begin_[peer] + row_of[i]);
  }
  if (options_.combine == CombineMode::kReduced) {
    in_weights_.insert(in_weights_.end(), weights, weights + count);
  }
}

absl::Status TokenExchange::ExchangeRows(int layer,
                                         const ActivationRows& rows) {
  ClearMessages();
  PORTOLAN_RETURN_IF_ERROR(
      Reserve(out_rows_, plan_.row_begin[world_] * options_.row_bytes));
  const auto row_bytes = static_cast<size_t>(options_.row_bytes);
  for (size_t peer = 0; peer < world_; ++peer) {
    std::byte* here =
        in_rows_.data() + static_cast<size_t>(in_row_begin_[peer]) * row_bytes;
    const Incoming& in = incoming_[peer];
    const size_t in_bytes = static_cast<size_t>(in.rows) * row_bytes;
    if (peer == self_) {
      PackRows(self_, rows, here);
      continue;
    }
    if (!Inlined(static_cast<int64_t>(in_bytes))) {
      recv_[peer] = {here, in_bytes};
    } else if (in_bytes > 0) {
      std::memcpy(here, in.inline_rows.data(), in_bytes);
    }
    const int32_t begin = plan_.row_begin[peer];
    const size_t out_bytes =
        static_cast<size_t>(plan_.row_begin[peer + 1] - begin) * row_bytes;
    if (Inlined(static_cast<int64_t>(out_bytes))) continue;
    std::byte* packed =
        out_rows_.data() + static_cast<size_t>(begin) * row_bytes;
    PackRows(peer, rows, packed);
    send_[peer] = {packed, out_bytes};
  }
  return ExchangeExact(ExchangePhase::kPayload, layer);
}

// Combine.

absl::Status TokenExchange::SumReceived() {
  if (options_.combine == CombineMode::kExact) return absl::OkStatus();
  PORTOLAN_RETURN_IF_ERROR(Reserve(sums_, ResultBytes(in_row_begin_[world_])));
  const size_t selections = in_experts_.size();
  for (size_t begin = 0, end = 0; begin < selections; begin = end) {
    const int32_t row = in_row_of_[begin];
    while (end < selections && in_row_of_[end] == row) {
      terms_[end - begin] = ResultRow(results_, end);
      ++end;
    }
    WeightedSum(std::span<const float>(in_weights_).subspan(begin, end - begin),
                std::span(terms_).first(end - begin),
                {ResultRow(sums_, static_cast<size_t>(row)),
                 static_cast<size_t>(options_.hidden)});
  }
  return absl::OkStatus();
}

absl::Status TokenExchange::ExchangeResults(int layer) {
  const bool exact = options_.combine == CombineMode::kExact;
  const auto& out_begin = exact ? in_begin_ : in_row_begin_;
  const auto& back_begin = exact ? plan_.selection_begin : plan_.row_begin;
  const AlignedBuffer& results = exact ? results_ : sums_;
  PORTOLAN_RETURN_IF_ERROR(Reserve(returned_, ResultBytes(back_begin[world_])));

  ClearMessages();
  for (size_t peer = 0; peer < world_; ++peer) {
    if (peer == self_) continue;
    const int32_t count = out_begin[peer + 1] - out_begin[peer];
    if (count > 0) {
      send_[peer] = WriteCombine(layer, peer, results, out_begin[peer], count);
    }
    if (back_begin[peer + 1] > back_begin[peer]) {
      recv_[peer] = Message(in_messages_, peer);
    }
  }
  PORTOLAN_RETURN_IF_ERROR(Exchange(ExchangePhase::kCombine, layer));

  result_rows_.resize(static_cast<size_t>(back_begin[world_]));
  for (size_t peer = 0; peer < world_; ++peer) {
    const int32_t count = back_begin[peer + 1] - back_begin[peer];
    if (count == 0) continue;
    const float* rows =
        ResultRow(results, static_cast<size_t>(out_begin[self_]));
    if (peer != self_) {
      const auto there = ReadCombine(layer, peer, back_begin[peer], count);
      PORTOLAN_RETURN_IF_ERROR(Blame(peer, there.status()));
      rows = *there;
    }
    for (int32_t i = 0; i < count; ++i) {
      result_rows_[static_cast<size_t>(back_begin[peer] + i)] =
          rows + i * options_.hidden;
    }
  }
  return ExchangeResultRows(layer, results, out_begin, back_begin);
}

std::span<const std::byte> TokenExchange::WriteCombine(
    int layer, size_t peer, const AlignedBuffer& results, int32_t begin,
    int32_t count) {
  const auto message = Message(out_messages_, peer);
  MessageHeader header = Header(MessageKind::kCombine, layer);
  header.rows = count;
  std::byte* end = Append<MessageHeader>(message.data(), std::span(&header, 1));
  const auto bytes = static_cast<size_t>(ResultBytes(count));
  if (Inlined(ResultBytes(count))) {
    std::memcpy(end, ResultRow(results, static_cast<size_t>(begin)), bytes);
    end += bytes;
  }
  return message.first(static_cast<size_t>(end - message.data()));
}

// Returns where the result rows of `peer` are, or will be once the second
// message has come.
absl::StatusOr<const float*> TokenExchange::ReadCombine(int layer, size_t peer,
                                                        int32_t begin,
                                                        int32_t count) {
  PORTOLAN_ASSIGN_OR_RETURN(const MessageHeader got, ReadHeader(peer));
  PORTOLAN_RETURN_IF_ERROR(
      CheckHeader(got, Header(MessageKind::kCombine, layer)));
  if (got.rows != count) {
    return absl::InternalError(absl::StrCat(
        "returned ", got.rows, " result rows where this rank expects ", count));
  }
  const bool inlined = Inlined(ResultBytes(count));
  PORTOLAN_RETURN_IF_ERROR(CheckSize(
      peer,
      sizeof(got) + (inlined ? static_cast<size_t>(ResultBytes(count)) : 0)));
  if (!inlined) return ResultRow(returned_, static_cast<size_t>(begin));
  return reinterpret_cast<const float*>(recv_[peer].data() + sizeof(got));
}

absl::Status TokenExchange::ExchangeResultRows(
    int layer, const AlignedBuffer& results,
    const std::vector<int32_t>& out_begin,
    const std::vector<int32_t>& back_begin) {
  ClearMessages();
  const auto rows_of = [&](const AlignedBuffer& buffer,
                           const std::vector<int32_t>& begin, size_t peer) {
    const int64_t bytes = ResultBytes(begin[peer + 1] - begin[peer]);
    if (Inlined(bytes)) return std::span<std::byte>();
    return buffer.bytes().subspan(static_cast<size_t>(ResultBytes(begin[peer])),
                                  static_cast<size_t>(bytes));
  };
  for (size_t peer = 0; peer < world_; ++peer) {
    if (peer == self_) continue;
    send_[peer] = rows_of(results, out_begin, peer);
    recv_[peer] = rows_of(returned_, back_begin, peer);
  }
  return ExchangeExact(ExchangePhase::kCombine, layer, /*enter=*/false);
}

void TokenExchange::Combine(const Routing& routing, int64_t first,
                            int64_t count, MatrixView<float> out) {
  if (options_.combine == CombineMode::kReduced) {
    for (int64_t t = first; t < first + count; ++t) {
      std::fill(out.Row(t).begin(), out.Row(t).end(), 0.0f);
    }
    for (size_t row = 0; row < plan_.tokens.size(); ++row) {
      Add(result_rows_[row], out.Row(plan_.tokens[row]));
    }
    return;
  }
  const auto top_k = static_cast<size_t>(routing.top_k);
  for (int64_t token = 0; token < count; ++token) {
    const size_t at = static_cast<size_t>(token) * top_k;
    for (size_t k = 0; k < top_k; ++k) {
      terms_[k] = result_rows_[static_cast<size_t>(plan_.slot_of[at + k])];
    }
    WeightedSum(
        routing.weights.subspan(static_cast<size_t>(first) * top_k + at, top_k),
        std::span(terms_).first(top_k), out.Row(first + token));
  }
}

}  // namespace portolan
