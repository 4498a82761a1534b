#include "launcher/memory_plan.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "experts/checkpoint_format.h"
#include "experts/expert_cache.h"
#include "experts/expert_pack.h"
#include "experts/expert_slot.h"
#include "experts/history_record.h"
#include "experts/ownership.h"
#include "experts/predictor_memory.h"
#include "experts/source_factory.h"
#include "launcher/wiring.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/units.h"
#include "runtime/kernels/rope_table.h"
#include "runtime/model/checkpoint/fingerprint.h"
#include "runtime/model/forward.h"
#include "runtime/model/kv_cache.h"

namespace portolan {
namespace {

// Code, libraries, thread stacks, tables by expert; measured at 40 MiB.
constexpr int64_t kProgramBytes = 64 << 20;

std::string Bytes(int64_t bytes) {
  return FormatBytes(static_cast<uint64_t>(std::max<int64_t>(0, bytes)));
}

int64_t OwnedOfALayer(const ModelConfig& config, int rank, int world_size) {
  return FirstOwnedExpert(rank + 1, world_size, config.num_experts) -
         FirstOwnedExpert(rank, world_size, config.num_experts);
}

// Whether a pack serves the experts: it needs no staging. The fingerprint of
// the model is read only if there may be one.
absl::StatusOr<bool> HasPack(const JobOptions& options, const Model& model) {
  const bool may_be =
      options.weights != WeightFormat::kBf16 || !options.pack_dir.empty() ||
      !FindPack(options.model_dir, "", 0, options.weights).empty();
  if (!may_be) return false;
  PackIdentity identity = PackIdentityOf(model, options.weights);
  PORTOLAN_ASSIGN_OR_RETURN(identity.fingerprint,
                            ModelFingerprint(model.config, *model.checkpoint));
  std::vector<std::string> notices;  // wiring will tell them
  PORTOLAN_ASSIGN_OR_RETURN(
      const std::unique_ptr<PackFormat> pack,
      OpenPack({.model_dir = options.model_dir, .pack_dir = options.pack_dir},
               identity, notices));
  return pack != nullptr;
}

// The longest landing buffer of the rank's experts, for every load under way.
int64_t StagingBytes(const Model& model, int rank, int world_size) {
  const ModelConfig& config = model.config;
  uint64_t longest = 0;
  std::vector<std::string> files;
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.IsMoeLayer(layer)) continue;
    for (int32_t expert =
             FirstOwnedExpert(rank, world_size, config.num_experts);
         expert < FirstOwnedExpert(rank + 1, world_size, config.num_experts);
         ++expert) {
      const ExpertReadPlan plan =
          PlanExpertRead(model.experts.ExpertExtentsOf({layer, expert}), files);
      longest = std::max(longest, plan.landing_bytes);
    }
  }
  return ExpertCache::Options{}.staging_buffers *
         static_cast<int64_t>(AlignUp(longest));
}

// Of ForwardPass and ExpertFfn: rows of f32 and of activations.
int64_t WorkBytes(const JobOptions& options, const ModelConfig& config,
                  int world_size) {
  const int64_t act = BytesOf(options.activations);
  const int64_t q = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv = int64_t{config.num_kv_heads} * config.head_dim;
  const int64_t token = config.hidden * (5 * 4 + 3 * act) + q * (4 + 2 * act) +
                        2 * kv * 4 + int64_t{config.num_experts} * 3 * 4;
  const int64_t logit =
      config.hidden * (4 + act) + config.vocab_size * int64_t{4};
  const int64_t rows = std::max<int64_t>(options.batch, options.logit_rows);
  const int64_t selections =
      int64_t{RoundTokens(ExchangeOptionsOf(options, config), world_size)} *
      config.top_k * world_size;
  return options.tokens_per_step * token + rows * logit +
         selections * (config.expert_intermediate * act + 8);
}

// Records of what a rank learnt and, at the end of a job of several ranks, all
// of them with the first one: as they travel and as they arrive.
int64_t MailboxBytes(const JobOptions& options, const HistoryShape& history,
                     int rank, int world_size) {
  HistoryMailbox::Options mailbox;
  int64_t gathered = 0;
  if (!options.shares_history) {
    if (options.history_file.empty() || world_size == 1) return 0;
    mailbox = GatheredHistoryOf(history, world_size);
    gathered = static_cast<int64_t>(rank == 0 ? mailbox.max_incoming_bytes
                                              : mailbox.max_outgoing_bytes);
    if (rank > 0) mailbox.max_incoming_bytes = 0;
  }
  const int64_t tokens = int64_t{kMaxRecordTokens} *
                         (1 + int64_t{history.num_layers} * history.top_k) * 4;
  const int64_t sequence =
      (int64_t{history.num_layers} * history.num_experts + history.hidden) * 4 +
      tokens;
  return static_cast<int64_t>(mailbox.max_outgoing_bytes +
                              mailbox.max_incoming_bytes) +
         gathered + options.batch * sequence;
}

}  // namespace

OwnerTable ContiguousOwners(const ModelConfig& config, int world_size) {
  std::vector<Rank> layer(static_cast<size_t>(config.num_experts));
  for (int32_t rank = 0; rank < world_size; ++rank) {
    const int32_t first =
        FirstOwnedExpert(rank, world_size, config.num_experts);
    const int32_t end =
        FirstOwnedExpert(rank + 1, world_size, config.num_experts);
    std::fill(layer.begin() + first, layer.begin() + end, Rank{rank});
  }
  return OwnerTable(static_cast<size_t>(config.num_moe_layers()), layer);
}

KvLayout KvLayoutOf(const JobOptions& options, const ModelConfig& config) {
  return {.num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .dtype = options.activations};
}

absl::StatusOr<int32_t> NumKvPages(const JobOptions& options,
                                   const ModelConfig& config) {
  if (options.kv_memory_bytes > 0) {
    const int64_t bytes =
        KvLayoutOf(options, config).PageBytes() * config.num_layers;
    const int64_t pages = options.kv_memory_bytes / bytes;
    if (pages >= 1) return static_cast<int32_t>(pages);
    return absl::InvalidArgumentError(absl::StrCat(
        "--kv-memory ", options.kv_memory_bytes, " holds no page of ",
        kPageTokens, " tokens; write ", bytes, " or more"));
  }
  constexpr int64_t kUsualContext = 4096;
  const int64_t tokens =
      options.kv_tokens > 0
          ? options.kv_tokens
          : std::max(
                config.max_position,
                options.batch * std::min(config.max_position, kUsualContext));
  // A sequence may end inside a page.
  return KvPagesFor(tokens) + options.batch;
}

ExchangeOptions ExchangeOptionsOf(const JobOptions& options,
                                  const ModelConfig& config) {
  ExchangeOptions exchange;
  exchange.num_layers = config.num_moe_layers();
  exchange.layer_names = config.MoeLayers();
  exchange.num_experts = config.num_experts;
  exchange.top_k = config.top_k;
  exchange.row_bytes = PaddedCols(config.hidden) * BytesOf(options.activations);
  exchange.hidden = config.hidden;
  exchange.combine = options.combine;
  exchange.buffer_bytes = options.exchange_memory_bytes;
  exchange.max_round_tokens = static_cast<int32_t>(options.tokens_per_step);
  return exchange;
}

HistoryShape HistoryShapeOf(const JobOptions& options, const Model& model) {
  const ModelConfig& config = model.config;
  return {.num_layers = config.num_moe_layers(),
          .num_experts = config.num_experts,
          .top_k = config.top_k,
          .hidden = static_cast<int32_t>(config.hidden),
          .fingerprint = model.fingerprint,
          .iterations = options.history_capacity,
          .sequences = options.history_capacity,
          .token_ids =
              TokenTableCapacity(config.num_moe_layers(), config.num_experts),
          .distance = options.prefetch_distance,
          .format = options.history_format};
}

PredictorShape PredictorShapeOf(const JobOptions& options,
                                const ModelConfig& config) {
  return {.num_layers = config.num_moe_layers(),
          .num_experts = config.num_experts,
          .top_k = config.top_k,
          .hidden = static_cast<int32_t>(config.hidden),
          .max_step_tokens = static_cast<int32_t>(options.tokens_per_step)};
}

HistoryMailbox::Options GatheredHistoryOf(const HistoryShape& shape,
                                          int world_size) {
  // The first rank's stores take no more than their capacity; token tables gain
  // from more sequences, but not from that many.
  constexpr size_t kMost = 256 << 20;
  const size_t of_a_rank =
      std::min(kMost, static_cast<size_t>(shape.iterations) *
                          MaxRowBytes({.num_layers = shape.num_layers,
                                       .num_experts = shape.num_experts,
                                       .top_k = shape.top_k,
                                       .hidden = shape.hidden}));
  return {.max_outgoing_bytes = of_a_rank,
          .max_incoming_bytes = of_a_rank * static_cast<size_t>(world_size)};
}

absl::Status CheckExchangeMemory(const JobOptions& options,
                                 const ModelConfig& config, int world_size) {
  const ExchangeOptions exchange = ExchangeOptionsOf(options, config);
  const int64_t least = MinBufferBytes(exchange, world_size);
  if (exchange.buffer_bytes >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--exchange-memory ", exchange.buffer_bytes,
                   " does not hold one token of each of ", world_size,
                   " rank(s); write ", least, " or more"));
}

absl::Status CheckKvHolds(const JobOptions& options, const ModelConfig& config,
                          int64_t prompt_tokens) {
  if (options.kv_memory_bytes <= 0) return absl::OkStatus();
  PORTOLAN_ASSIGN_OR_RETURN(const int32_t pages, NumKvPages(options, config));
  if (prompt_tokens < pages * kPageTokens) return absl::OkStatus();
  const int64_t page_bytes =
      KvLayoutOf(options, config).PageBytes() * config.num_layers;
  return absl::InvalidArgumentError(
      absl::StrCat("the prompt has ", prompt_tokens, " tokens; --kv-memory ",
                   options.kv_memory_bytes, " holds ", pages * kPageTokens,
                   " positions, generated ones too; write ",
                   KvPagesFor(prompt_tokens + 1) * page_bytes, " or more"));
}

absl::Status CheckKvHoldsSequences(const JobOptions& options,
                                   const ModelConfig& config,
                                   int64_t num_sequences, int64_t positions) {
  PORTOLAN_ASSIGN_OR_RETURN(const int32_t pages, NumKvPages(options, config));
  const int64_t wanted = num_sequences * KvPagesFor(positions);
  if (wanted <= pages) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      num_sequences, " sequence(s) of ", positions, " positions take ", wanted,
      " pages of keys and values, --kv-memory ", options.kv_memory_bytes,
      " holds ", pages, "; write ",
      wanted * KvLayoutOf(options, config).PageBytes() * config.num_layers,
      " or more"));
}

int64_t RankMemory::other_bytes() const {
  return staging_bytes + host_tier_bytes + dense_bytes + kv_bytes +
         exchange_bytes + work_bytes + rope_bytes + history_bytes +
         foresight_bytes + mailbox_bytes + program_bytes;
}

absl::StatusOr<RankMemory> PlanRankMemory(const JobOptions& options,
                                          const Model& model, int rank,
                                          int world_size) {
  const ModelConfig& config = model.config;
  RankMemory memory;
  memory.rank = rank;
  memory.moe_layers = config.num_moe_layers();
  PORTOLAN_RETURN_IF_ERROR(CheckExchangeMemory(options, config, world_size));
  PORTOLAN_ASSIGN_OR_RETURN(
      memory.experts,
      PlanExpertMemory(
          options.expert_memory,
          OwnedOfALayer(config, rank, world_size) * memory.moe_layers,
          ExpertSlotBytes(model.experts.shape(), options.weights)));
  if (options.experts_in_host_memory) {
    memory.host_tier_bytes =
        memory.experts.owned_slots * memory.experts.slot_bytes;
  } else {
    PORTOLAN_ASSIGN_OR_RETURN(const bool has_pack, HasPack(options, model));
    if (!has_pack) {
      memory.staging_bytes = StagingBytes(model, rank, world_size);
    }
  }
  PORTOLAN_ASSIGN_OR_RETURN(memory.dense_bytes,
                            DenseWeights::BytesNeeded(config, *model.checkpoint,
                                                      options.dense_weights));
  const int64_t page_bytes =
      KvLayoutOf(options, config).PageBytes() * config.num_layers;
  memory.kv_bytes_per_token = page_bytes / kPageTokens;
  PORTOLAN_ASSIGN_OR_RETURN(const int32_t kv_pages,
                            NumKvPages(options, config));
  memory.kv_bytes = kv_pages * page_bytes;
  memory.exchange_bytes =
      MostBufferBytes(ExchangeOptionsOf(options, config), world_size);
  memory.work_bytes = WorkBytes(options, config, world_size);
  memory.rope_bytes =
      RopeTable::Bytes(config.rope.rotary_dim, RopePositions(config, kv_pages));
  const HistoryShape history = HistoryShapeOf(options, model);
  memory.history_bytes = HistoryBytes(history);
  // Also where all experts are resident: with fewer slots it will be needed.
  memory.foresight_bytes =
      PredictorBytes(options.policy, PredictorShapeOf(options, config), history,
                     options.batch);
  memory.mailbox_bytes = MailboxBytes(options, history, rank, world_size);
  memory.program_bytes = kProgramBytes;
  return memory;
}

int64_t BytesTogether(std::span<const RankMemory> ranks, bool processes) {
  int64_t bytes = 0;
  for (const RankMemory& rank : ranks) bytes += rank.bytes();
  if (processes || ranks.empty()) return bytes;
  const auto others = static_cast<int64_t>(ranks.size()) - 1;
  return bytes -
         others * (ranks.front().dense_bytes + ranks.front().program_bytes);
}

int64_t SlotsThatFit(std::span<const RankMemory> ranks, bool processes,
                     int64_t available) {
  if (ranks.empty()) return 0;
  int64_t slots = 0;
  for (const RankMemory& rank : ranks) slots += rank.experts.bytes();
  const int64_t others = BytesTogether(ranks, processes) - slots;
  const int64_t slot_bytes = std::max<int64_t>(1, ranks[0].experts.slot_bytes);
  if (available < others) return -1;
  return (available - others) /
         (slot_bytes * static_cast<int64_t>(ranks.size()));
}

absl::Status LoadHistory(const JobOptions& options, History& history) {
  if (options.history_file.empty()) return absl::OkStatus();
  const absl::Status loaded = history.Load(options.history_file);
  return absl::IsNotFound(loaded) ? absl::OkStatus() : loaded;
}

absl::Status CheckFits(const JobOptions& options,
                       std::span<const RankMemory> ranks, bool processes,
                       int64_t available) {
  const int64_t wanted = BytesTogether(ranks, processes);
  if (options.expert_memory != "all" || wanted <= available) {
    return absl::OkStatus();
  }
  int64_t minimum = 0;
  int64_t owned_bytes = 0;
  for (const RankMemory& rank : ranks) {
    minimum = std::max(minimum, MinExpertSlots(rank.experts.owned_slots));
    owned_bytes += rank.experts.owned_slots * rank.experts.slot_bytes;
  }
  const std::string problem = absl::StrCat(
      "all experts do not fit: this host's ", ranks.size(), " rank(s) want ",
      Bytes(wanted), " (experts ", Bytes(owned_bytes), "), ", Bytes(available),
      " are available; ");
  const int64_t slots = SlotsThatFit(ranks, processes, available);
  if (slots < minimum) {
    return absl::ResourceExhaustedError(absl::StrCat(
        problem, "not even the ", minimum,
        " expert slots that a rank needs fit beside the rest: lower --batch, "
        "--kv-memory or --tokens-per-step, or use fewer ranks here"));
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      problem, "write --expert-memory ", slots * ranks[0].experts.slot_bytes,
      " (", Bytes(slots * ranks[0].experts.slot_bytes),
      ") or less; --expert-memory 100% insists"));
}

}  // namespace portolan
