#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/base/profile.h"

namespace portolan {

class ThreadPool;

enum class CombineMode {
  // One f32 row per selection returns; the source of the token multiplies by
  // the gate weight and sums in top-k order. Same bits for any number of ranks.
  kExact,
  // The owner sums the weighted rows of a token in top-k order, the source sums
  // per rank in rank order: fewer bytes, other bits than kExact.
  kReduced,
};

// The phases of a step, in order; compute lies between payload and combine.
enum class ExchangePhase { kStepRecord, kHeader, kPayload, kCompute, kCombine };

// "step record", "header", "payload", "compute", "combine".
absl::string_view ToString(ExchangePhase phase);

// Called as this rank enters a phase, before it sends anything of it.
// `outgoing` is the message to the next rank, where the phase has one; a hook
// may damage it. For fault tests and tracing.
struct PhaseEvent {
  ExchangePhase phase;
  int64_t step;
  int32_t layer;  // -1 for the step record
  std::span<std::byte> outgoing;
};
using PhaseHook = std::function<void(const PhaseEvent&)>;

struct ExchangeOptions {
  int32_t num_layers = 0;  // MoE layers
  // What the model calls each of them, for messages and profiles; empty: the
  // same.
  std::vector<int32_t> layer_names;
  int32_t num_experts = 0;
  int32_t top_k = 0;      // at most this many selections per token
  int64_t row_bytes = 0;  // of one activation row
  int64_t hidden = 0;     // values of one result row
  CombineMode combine = CombineMode::kExact;
  // Shares the sums of many tokens among its threads; null: the calling one. In
  // use during Run() only. Must outlive the exchange.
  ThreadPool* pool = nullptr;

  // What the buffers of one rank may take. More tokens than fit at worst travel
  // in several rounds, with the same result.
  int64_t buffer_bytes = int64_t{256} << 20;
  int32_t max_round_tokens = 4096;
  // Rows ride in the header's message up to this size.
  int64_t eager_bytes = 32 << 10;

  // Look-ahead: hints for layer + d travel in the header of each layer, for
  // every d in hint_distances; those for layers 0 .. step_hint_layers - 1 in
  // the step record. Empty and 0: none.
  std::vector<int32_t> hint_distances;
  int32_t step_hint_layers = 0;

  uint64_t epoch = 0;              // which job, and which start of it
  uint64_t numerics_id = 0;        // two ranks with different ones may not
  uint64_t model_fingerprint = 0;  // compute together

  // Those, and what hints follow from, as the user knows them: for the error of
  // ranks that differ. Empty: it tells nothing.
  struct Described {
    std::string epoch;     // "77, 2"
    std::string numerics;  // "int8, bf16, bf16"
    std::string model;     // "/models/tiny"
    std::string hints;     // "adaptive, 3"
  };
  Described described;

  // Create() waits for ranks that still load; a step waits step_timeout, and
  // longer as the rows ask for that all ranks planned, and the experts that
  // these rows may make them load.
  absl::Duration start_timeout = absl::Minutes(30);
  absl::Duration step_timeout = absl::Minutes(2);
  absl::Duration timeout_per_row = absl::Milliseconds(50);
  // What loading one expert may take on this rank; 0: all are in memory. Ranks
  // may differ.
  absl::Duration expert_load_time = {};

  PhaseHook phase_hook;
  Profile* profile = nullptr;  // may be null; must outlive the exchange

  // Errors: kInvalidArgument naming the field.
  absl::Status Validate() const;
};

// The tokens of a rank that one round takes: such that even if all ranks send
// all of theirs to one, and every token needs all its experts there, that
// rank's buffers suffice. 0 if they hold not even one token of each.
int32_t RoundTokens(const ExchangeOptions& options, int world_size);

// The least buffer_bytes that hold one token of each rank.
int64_t MinBufferBytes(const ExchangeOptions& options, int world_size);

// What a rank's buffers take at most: a full round at its worst, and the
// messages with their hints.
int64_t MostBufferBytes(const ExchangeOptions& options, int world_size);

}  // namespace portolan
