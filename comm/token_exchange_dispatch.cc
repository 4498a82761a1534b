// TokenExchange: rows and what is selected of them go to the ranks that hold
// the experts.

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "comm/token_exchange.h"
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

}  // namespace portolan
