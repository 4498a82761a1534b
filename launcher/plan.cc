#include "launcher/plan.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "experts/replay.h"
#include "experts/replay_report.h"
#include "launcher/console.h"
#include "launcher/flags.h"
#include "launcher/memory_plan.h"
#include "launcher/options.h"
#include "launcher/replay.h"
#include "runtime/base/memory_available.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/units.h"
#include "runtime/model/checkpoint/fingerprint.h"

namespace portolan {
namespace {

using Json = nlohmann::ordered_json;

struct PlanOptions {
  JobOptions job;
  int32_t ranks_per_host = 0;  // 0: all
  std::vector<std::string> traces;
  bool json = false;
};

// What there is to print.
struct Plan {
  std::vector<RankMemory> ranks;
  int32_t layers = 0;
  int64_t kv_tokens = 0;      // of a rank
  int64_t bytes_read = 0;     // of weights: none
  int64_t available = 0;      // of a host
  int64_t largest_slots = 0;  // of a rank, for the fullest host; < 0: none
  int64_t host_bytes = 0;     // of the fullest host
  HistoryShape history;       // of each rank
  std::optional<ReplayResult> replay;
  std::string link;
};

absl::StatusOr<LinkSpec> LinkOf(const PlanOptions& options,
                                const TraceHeader& header) {
  if (!options.job.expert_link.empty()) {
    return ParseLinkSpec(options.job.expert_link);
  }
  if (header.link_bytes_per_second > 0) {
    return LinkSpec{.bytes_per_second = header.link_bytes_per_second,
                    .latency = absl::Seconds(header.link_latency_s)};
  }
  return absl::InvalidArgumentError(
      "--trace needs a link to foretell the stall: the trace was recorded "
      "without one, so add --expert-link, for example 1GB/s,50us");
}

absl::Status ReplayTrace(const PlanOptions& options, int num_ranks,
                         const History& history, Plan& plan) {
  PORTOLAN_ASSIGN_OR_RETURN(Trace trace, ReadTraces(options.traces));
  PORTOLAN_RETURN_IF_ERROR(
      CheckSameModel(absl::StrCat("--trace ", options.traces.front()),
                     trace.header, plan.history));
  // The format of the weights that is planned may be another.
  trace.header.expert_bytes = plan.ranks[0].experts.slot_bytes;
  ReplayOptions replay{.num_ranks = num_ranks,
                       .expert_memory = options.job.expert_memory};
  replay.policy.distance = options.job.prefetch_distance;
  PORTOLAN_ASSIGN_OR_RETURN(replay.link, LinkOf(options, trace.header));
  plan.link = options.job.expert_link.empty() ? ToString(replay.link)
                                              : options.job.expert_link;
  PORTOLAN_ASSIGN_OR_RETURN(
      plan.replay, Replay(trace, options.job.policy, replay, &history));
  return absl::OkStatus();
}

absl::StatusOr<Plan> MakePlan(const PlanOptions& options) {
  PORTOLAN_RETURN_IF_ERROR(options.job.ValidateJob());
  PORTOLAN_ASSIGN_OR_RETURN(Model model, OpenModel(options.job.model_dir));
  TellNotice(model);
  if (!options.traces.empty()) {  // which must be of this very model
    PORTOLAN_ASSIGN_OR_RETURN(
        model.fingerprint, ModelFingerprint(model.config, *model.checkpoint));
  }
  const int num_ranks = std::max(1, options.job.ranks);
  Plan plan;
  plan.layers = model.config.num_layers;
  plan.history = HistoryShapeOf(options.job, model);
  for (int rank = 0; rank < num_ranks; ++rank) {
    PORTOLAN_ASSIGN_OR_RETURN(
        plan.ranks.emplace_back(),
        PlanRankMemory(options.job, model, rank, num_ranks));
  }
  plan.kv_tokens = plan.ranks[0].kv_bytes / plan.ranks[0].kv_bytes_per_token;
  const Checkpoint::BytesRead read = model.checkpoint->bytes_read();
  plan.bytes_read =
      static_cast<int64_t>(read.metadata + read.dense + read.expert);
  plan.available = options.job.memory_available > 0
                       ? options.job.memory_available
                       : AvailableMemory();
  // The first ranks own as much as any.
  const auto on_host = std::span(plan.ranks)
                           .first(static_cast<size_t>(
                               options.ranks_per_host > 0
                                   ? std::min(options.ranks_per_host, num_ranks)
                                   : num_ranks));
  plan.host_bytes = BytesTogether(on_host, /*processes=*/true);
  plan.largest_slots =
      std::min(SlotsThatFit(on_host, /*processes=*/true, plan.available),
               plan.ranks[0].experts.owned_slots);
  PORTOLAN_RETURN_IF_ERROR(CheckHistoryFits(plan.history));
  History history(plan.history);
  PORTOLAN_RETURN_IF_ERROR(LoadHistory(options.job, history));
  if (!options.traces.empty()) {
    PORTOLAN_RETURN_IF_ERROR(ReplayTrace(options, num_ranks, history, plan));
  }
  return plan;
}

Json RankJson(const RankMemory& rank) {
  return {{"rank", rank.rank},
          {"experts", rank.experts.owned_slots},
          {"slot_bytes", rank.experts.slot_bytes},
          {"slots", rank.experts.num_slots},
          {"slots_per_layer", rank.slots_per_layer()},
          {"expert_bytes", rank.experts.bytes()},
          {"staging_bytes", rank.staging_bytes},
          {"host_tier_bytes", rank.host_tier_bytes},
          {"dense_bytes", rank.dense_bytes},
          {"kv_bytes_per_token", rank.kv_bytes_per_token},
          {"kv_bytes", rank.kv_bytes},
          {"exchange_bytes", rank.exchange_bytes},
          {"work_bytes", rank.work_bytes},
          {"rope_bytes", rank.rope_bytes},
          {"history_bytes", rank.history_bytes},
          {"foresight_bytes", rank.foresight_bytes},
          {"mailbox_bytes", rank.mailbox_bytes},
          {"program_bytes", rank.program_bytes},
          {"bytes", rank.bytes()}};
}

int64_t HistoryBytesAs(MapFormat format, HistoryShape shape) {
  shape.format = format;
  return HistoryBytes(shape);
}

MapFormat OtherFormat(MapFormat format) {
  return format == MapFormat::kExact ? MapFormat::kCompact : MapFormat::kExact;
}

Json HistoryJson(const HistoryShape& shape) {
  return {{"format", MapFormatName(shape.format)},
          {"capacity", shape.iterations},
          {"exact_bytes", HistoryBytesAs(MapFormat::kExact, shape)},
          {"compact_bytes", HistoryBytesAs(MapFormat::kCompact, shape)}};
}

Json PlanJson(const PlanOptions& options, const Plan& plan) {
  Json json = {{"model", options.job.model_dir},
               {"ranks", plan.ranks.size()},
               {"kv_tokens", plan.kv_tokens},
               {"history", HistoryJson(plan.history)},
               {"weight_bytes_read", plan.bytes_read},
               {"available_bytes", plan.available},
               {"host_bytes", plan.host_bytes},
               {"fits", plan.host_bytes <= plan.available},
               {"largest_expert_memory",
                plan.largest_slots * plan.ranks[0].experts.slot_bytes},
               {"per_rank", Json::array()}};
  for (const RankMemory& rank : plan.ranks) {
    json["per_rank"].push_back(RankJson(rank));
  }
  if (plan.replay) {
    json["replay"] = ToJson(plan.replay->total);
    json["replay"]["policy"] = plan.replay->policy;
    json["replay"]["link"] = plan.link;
    json["replay"]["stall_per_token_s"] = plan.replay->total.StallPerToken();
    json["replay"]["lost_per_token_s"] = plan.replay->LostPerToken();
  }
  return json;
}

std::string Size(int64_t bytes) {
  return FormatBytes(static_cast<uint64_t>(std::max<int64_t>(0, bytes)));
}

void PrintPlan(const PlanOptions& options, const Plan& plan) {
  std::printf("%4s %8s %10s %7s %9s %10s %10s %10s %10s %10s %10s %10s\n",
              "rank", "experts", "a slot", "slots", "per layer", "experts",
              "dense", "KV", "exchange", "staging", "other", "sum");
  for (const RankMemory& rank : plan.ranks) {
    std::printf(
        "%4d %8lld %10s %7lld %9.1f %10s %10s %10s %10s %10s %10s %10s\n",
        rank.rank, static_cast<long long>(rank.experts.owned_slots),
        Size(rank.experts.slot_bytes).c_str(),
        static_cast<long long>(rank.experts.num_slots), rank.slots_per_layer(),
        Size(rank.experts.bytes()).c_str(), Size(rank.dense_bytes).c_str(),
        Size(rank.kv_bytes).c_str(), Size(rank.exchange_bytes).c_str(),
        Size(rank.staging_bytes + rank.host_tier_bytes).c_str(),
        Size(rank.work_bytes + rank.rope_bytes + rank.history_bytes +
             rank.foresight_bytes + rank.mailbox_bytes + rank.program_bytes)
            .c_str(),
        Size(rank.bytes()).c_str());
  }
  std::printf("KV: %s a token, room for %lld tokens on each rank\n",
              Size(plan.ranks[0].kv_bytes_per_token).c_str(),
              static_cast<long long>(plan.kv_tokens));
  std::printf(
      "history: %s of %d maps of tokens and as many of sequences, %s (%s would "
      "take %s)\n",
      Size(HistoryBytes(plan.history)).c_str(), plan.history.iterations,
      std::string(MapFormatName(plan.history.format)).c_str(),
      std::string(MapFormatName(OtherFormat(plan.history.format))).c_str(),
      Size(HistoryBytesAs(OtherFormat(plan.history.format), plan.history))
          .c_str());
  std::printf(
      "a host's ranks take %s of %s available: %s\n",
      Size(plan.host_bytes).c_str(), Size(plan.available).c_str(),
      plan.host_bytes <= plan.available ? "they fit" : "they do not fit");
  if (plan.largest_slots >= MinExpertSlots(plan.ranks[0].experts.owned_slots)) {
    const int64_t bytes = plan.largest_slots * plan.ranks[0].experts.slot_bytes;
    std::printf(
        "the largest --expert-memory that fits: %lld (%s, %lld slots)\n",
        static_cast<long long>(bytes), Size(bytes).c_str(),
        static_cast<long long>(plan.largest_slots));
  }
  if (plan.replay) {
    std::printf(
        "expected stall, by replay of %s with %s at %s: %.3f ms a token of all "
        "ranks together, which makes the run %.3f ms longer, %.1f %% hits\n",
        absl::StrJoin(options.traces, ", ").c_str(),
        plan.replay->policy.c_str(), plan.link.c_str(),
        1e3 * plan.replay->total.StallPerToken(),
        1e3 * plan.replay->LostPerToken(), 100 * plan.replay->total.HitRate());
  }
}

absl::Status RunPlan(const PlanOptions& options) {
  PORTOLAN_ASSIGN_OR_RETURN(const Plan plan, MakePlan(options));
  if (options.json) {
    PORTOLAN_RETURN_IF_ERROR(Print(PlanJson(options, plan).dump(2) + "\n"));
  } else {
    PrintPlan(options, plan);
  }
  if (plan.host_bytes <= plan.available) return absl::OkStatus();
  const auto on_host =
      options.ranks_per_host > 0
          ? std::min<size_t>(static_cast<size_t>(options.ranks_per_host),
                             plan.ranks.size())
          : plan.ranks.size();
  PORTOLAN_RETURN_IF_ERROR(CheckFits(options.job,
                                     std::span(plan.ranks).first(on_host),
                                     /*processes=*/true, plan.available));
  return absl::ResourceExhaustedError(absl::StrCat(
      "this does not fit: ",
      FormatBytes(static_cast<uint64_t>(plan.host_bytes)), " are wanted, ",
      FormatBytes(static_cast<uint64_t>(plan.available)),
      " are available; a run takes --expert-memory ", options.job.expert_memory,
      " at its word and may be killed for it"));
}

}  // namespace

void AddPlanCommand(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command = app.add_subcommand(
      "plan",
      "Say what a job takes in memory, and whether it fits, before the wait");
  AddJobOptions(*command, options->job);
  command->get_option("--ranks")->description("Ranks of the job");
  // Not one to write but those to read.
  command->remove_option(command->get_option("--trace"));
  AddFlag(*command, "--trace", options->traces,
          "Trace files to replay for the expected stall (with --policy, "
          "--expert-link): of each rank of a run; several runs follow each "
          "other");
  AddFlag(*command, "--ranks-per-host", options->ranks_per_host,
          "Ranks that share the memory of a host (default: all)")
      ->check(CLI::Range(1, 1 << 16));
  AddSwitch(*command, "--service", options->job.shares_history,
            "Of ranks that serve (serve, worker) and share their history");
  AddSwitch(*command, "--json", options->json, "Print JSON");
  command->callback(
      [options, &exit_code] { exit_code = Report(RunPlan(*options)); });
}

}  // namespace portolan
