#include "comm/exchange_options.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "comm/message.h"
#include "runtime/base/fp16.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

// Of one token of each rank, in all buffers of a rank.
int64_t TokenBytes(const ExchangeOptions& options, int world_size) {
  const int64_t results =
      options.top_k * options.hidden * static_cast<int64_t>(sizeof(float));
  const int64_t in = world_size * (options.row_bytes + results);
  const int64_t out =
      std::min(world_size, options.top_k) * options.row_bytes + results;
  return world_size == 1 ? results : in + out;
}

}  // namespace

absl::string_view ToString(ExchangePhase phase) {
  switch (phase) {
    case ExchangePhase::kStepRecord:
      return "step record";
    case ExchangePhase::kHeader:
      return "header";
    case ExchangePhase::kPayload:
      return "payload";
    case ExchangePhase::kCompute:
      return "compute";
    case ExchangePhase::kCombine:
      return "combine";
  }
  return "?";
}

absl::Status ExchangeOptions::Validate() const {
  const auto at_least = [](absl::string_view field, int64_t value,
                           int64_t least) {
    if (value >= least) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "exchange option ", field, " is ", value, ", at least ", least));
  };
  PORTOLAN_RETURN_IF_ERROR(at_least("num_layers", num_layers, 1));
  PORTOLAN_RETURN_IF_ERROR(at_least("num_experts", num_experts, 1));
  PORTOLAN_RETURN_IF_ERROR(at_least("top_k", top_k, 1));
  PORTOLAN_RETURN_IF_ERROR(at_least("row_bytes", row_bytes, 1));
  PORTOLAN_RETURN_IF_ERROR(at_least("hidden", hidden, 1));
  PORTOLAN_RETURN_IF_ERROR(at_least("max_round_tokens", max_round_tokens, 1));
  PORTOLAN_RETURN_IF_ERROR(at_least("eager_bytes", eager_bytes,
                                    static_cast<int64_t>(kMaxAbortBytes)));
  PORTOLAN_RETURN_IF_ERROR(at_least("step_hint_layers", step_hint_layers, 0));
  PORTOLAN_RETURN_IF_ERROR(
      at_least("num_layers", num_layers, (step_hint_layers + 1) / 2));
  PORTOLAN_RETURN_IF_ERROR(at_least(
      "expert_load_time", absl::ToInt64Microseconds(expert_load_time), 0));
  for (const int32_t distance : hint_distances) {
    PORTOLAN_RETURN_IF_ERROR(at_least("hint_distances", distance, 1));
  }
  return absl::OkStatus();
}

int32_t RoundTokens(const ExchangeOptions& options, int world_size) {
  // MPI counts the bytes of a message by an int: rows to, and results from, one
  // rank.
  const int64_t most_per_token =
      std::max(options.row_bytes, options.top_k * options.hidden *
                                      static_cast<int64_t>(sizeof(float)));
  return static_cast<int32_t>(std::min<int64_t>(
      {options.buffer_bytes / TokenBytes(options, world_size),
       INT32_MAX / most_per_token, options.max_round_tokens}));
}

int64_t MinBufferBytes(const ExchangeOptions& options, int world_size) {
  return TokenBytes(options, world_size);
}

int64_t MostBufferBytes(const ExchangeOptions& options, int world_size) {
  const int64_t tokens = RoundTokens(options, world_size);
  const int64_t hints =
      (std::ssize(options.hint_distances) + options.step_hint_layers) *
      options.num_experts * static_cast<int64_t>(sizeof(Fp16));
  const int64_t message = sizeof(MessageHeader) + sizeof(StepFields) + hints +
                          tokens * options.top_k * 12 + options.eager_bytes;
  return tokens * TokenBytes(options, world_size) + 2 * world_size * message;
}

}  // namespace portolan
