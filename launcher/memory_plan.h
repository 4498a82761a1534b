#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/exchange_options.h"
#include "comm/hints.h"
#include "experts/history.h"
#include "experts/history_mailbox.h"
#include "experts/memory_budget.h"
#include "experts/predictor.h"
#include "launcher/job.h"
#include "launcher/options.h"
#include "runtime/kernels/kv_layout.h"

namespace portolan {

// What a job of these options takes in memory, from config and tensor headers
// alone. `portolan plan` prints it, the start checks it, and wiring builds
// from the same functions.

// Contiguous blocks of experts, sizes as equal as they can be.
OwnerTable ContiguousOwners(const ModelConfig& config, int world_size);

// Of the model's keys and values.
KvLayout KvLayoutOf(const JobOptions& options, const ModelConfig& config);

// KV pages of a rank: what --kv-memory holds, else room for --batch sequences
// of the whole context, or of 4096 positions where the context is longer; at
// least for one whole context.
// Errors: kInvalidArgument naming --kv-memory and the minimum.
absl::StatusOr<int32_t> NumKvPages(const JobOptions& options,
                                   const ModelConfig& config);

// Sizes, combine mode and buffers; the rest as by default.
ExchangeOptions ExchangeOptionsOf(const JobOptions& options,
                                  const ModelConfig& config);

// Errors: kInvalidArgument naming --exchange-memory and the minimum.
absl::Status CheckExchangeMemory(const JobOptions& options,
                                 const ModelConfig& config, int world_size);

// Whether the KV pages hold a prompt and one token more.
// Errors: kInvalidArgument naming --kv-memory and what it must be.
absl::Status CheckKvHolds(const JobOptions& options, const ModelConfig& config,
                          int64_t prompt_tokens);

HistoryShape HistoryShapeOf(const JobOptions& options, const Model& model);

// What --history names, if it is there. Errors: as History::Load().
absl::Status LoadHistory(const JobOptions& options, History& history);

PredictorShape PredictorShapeOf(const JobOptions& options,
                                const ModelConfig& config);

// Of a job that has --history, several ranks and no coordinator: what they
// learnt, the latest, waits for its end.
HistoryMailbox::Options GatheredHistoryOf(const HistoryShape& shape,
                                          int world_size);

// Whether the KV pages hold so many sequences of so many positions at a time.
// Errors: kInvalidArgument naming --kv-memory and what it must be.
absl::Status CheckKvHoldsSequences(const JobOptions& options,
                                   const ModelConfig& config,
                                   int64_t num_sequences, int64_t positions);

// One rank's share. Sizes are bytes.
struct RankMemory {
  int32_t rank = 0;
  int32_t moe_layers = 0;
  MemoryBudget experts;         // slots
  int64_t staging_bytes = 0;    // loads on their way; a pack needs none
  int64_t host_tier_bytes = 0;  // of --expert-source host
  int64_t dense_bytes = 0;      // all weights but experts, once per process
  int64_t kv_bytes_per_token = 0;
  int64_t kv_bytes = 0;
  int64_t exchange_bytes = 0;   // at most, in a full step
  int64_t work_bytes = 0;       // activations and logits of a full step
  int64_t rope_bytes = 0;       // table of rotary positions, full
  int64_t history_bytes = 0;    // what predictors remember
  int64_t foresight_bytes = 0;  // what they keep of a full step
  int64_t mailbox_bytes = 0;    // history on its way to other ranks, at most
  int64_t program_bytes = 0;    // code, libraries, tables: an allowance

  double slots_per_layer() const {
    return moe_layers == 0 ? 0
                           : static_cast<double>(experts.num_slots) /
                                 static_cast<double>(moe_layers);
  }
  // All but the expert slots, for a rank in a process of its own.
  int64_t other_bytes() const;
  int64_t bytes() const { return experts.bytes() + other_bytes(); }
};

// Errors: kInvalidArgument naming --expert-memory and the minimum (see
// PlanExpertMemory()); as CheckExchangeMemory(), NumKvPages(),
// DenseWeights::BytesNeeded().
absl::StatusOr<RankMemory> PlanRankMemory(const JobOptions& options,
                                          const Model& model, int rank,
                                          int world_size);

// What ranks of one host take together; `processes`: false if they are threads
// of one, which share the dense weights.
int64_t BytesTogether(std::span<const RankMemory> ranks, bool processes);

// The most expert slots that each of these ranks of one host can have in
// `available` bytes; negative if even the rest does not fit.
int64_t SlotsThatFit(std::span<const RankMemory> ranks, bool processes,
                     int64_t available);

// Whether the ranks of one host fit into `available` bytes. A stated budget is
// the user's word, so only "all" is refused.
// Errors: kResourceExhausted saying what is wanted, what is there and what to
// write instead.
absl::Status CheckFits(const JobOptions& options,
                       std::span<const RankMemory> ranks, bool processes,
                       int64_t available);

}  // namespace portolan
