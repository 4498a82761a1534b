// TokenExchange: results come back and are summed for each token.

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "comm/combine.h"
#include "comm/token_exchange.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/thread_pool.h"

namespace portolan {
namespace {

// Terms of all sums from which waking other threads is worth it: some 20 us of
// one thread.
constexpr int64_t kSharedTerms = 64 * 1024;
constexpr int64_t kTokensOfTask = 4;

}  // namespace

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
  std::memcpy(message.data(), &header, sizeof(header));
  std::byte* end = message.data() + sizeof(header);
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
  SumTokens(
      routing, first, count,
      [&](size_t selection) {
        return result_rows_[static_cast<size_t>(plan_.slot_of[selection])];
      },
      out);
}

void TokenExchange::SumTokens(
    const Routing& routing, int64_t first, int64_t count,
    absl::FunctionRef<const float*(size_t selection)> result_row,
    MatrixView<float> out) {
  const auto top_k = static_cast<size_t>(routing.top_k);
  const auto sum = [&](int64_t token, int thread) {
    const size_t at = static_cast<size_t>(token) * top_k;
    const std::span<const float*> terms = std::span(terms_).subspan(
        static_cast<size_t>(thread) * static_cast<size_t>(options_.top_k),
        top_k);
    for (size_t k = 0; k < top_k; ++k) terms[k] = result_row(at + k);
    WeightedSum(
        routing.weights.subspan(static_cast<size_t>(first) * top_k + at, top_k),
        terms, out.Row(first + token));
  };
  if (options_.pool == nullptr ||
      count * routing.top_k * options_.hidden < kSharedTerms) {
    for (int64_t token = 0; token < count; ++token) sum(token, 0);
    return;
  }
  options_.pool->ParallelForThread(
      (count + kTokensOfTask - 1) / kTokensOfTask, [&](int64_t i, int thread) {
        const int64_t end = std::min(count, (i + 1) * kTokensOfTask);
        for (int64_t token = i * kTokensOfTask; token < end; ++token) {
          sum(token, thread);
        }
      });
}

}  // namespace portolan
