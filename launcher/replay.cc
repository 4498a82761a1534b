#include "launcher/replay.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "experts/replacing_file.h"
#include "experts/replay.h"
#include "experts/replay_plot.h"
#include "experts/replay_report.h"
#include "experts/trace_join.h"
#include "launcher/console.h"
#include "launcher/flags.h"
#include "launcher/options.h"
#include "launcher/output_files.h"
#include "runtime/base/cpu_time.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

struct ReplayCommand {
  std::vector<std::string> traces;
  std::vector<std::string> policies;
  std::vector<std::string> expert_memory = {"25%"};
  std::string link;
  int32_t ranks = 1;
  int32_t distance = PolicyOptions{}.distance;
  std::string history;
  MapFormat history_format = MapFormat::kExact;
  int32_t history_capacity = HistoryShape{}.iterations;
  std::vector<std::string> learn;
  std::string map_replacement = "similarity";
  std::string plot;
  bool json = false;
  bool why = false;
};

// What predictors begin with: a saved history, then what a trace teaches.
absl::StatusOr<std::unique_ptr<History>> PrepareHistory(
    const ReplayCommand& command, const TraceHeader& header,
    const PolicyOptions& options) {
  HistoryShape shape = HistoryShapeOf(header, options.distance);
  shape.format = command.history_format;
  shape.iterations = command.history_capacity;
  shape.sequences = command.history_capacity;
  if (command.map_replacement == "usefulness") {
    shape.replacement = MapReplacement::kUsefulness;
  }
  PORTOLAN_RETURN_IF_ERROR(CheckHistoryFits(shape));
  auto history = std::make_unique<History>(shape);
  if (!command.history.empty()) {
    PORTOLAN_RETURN_IF_ERROR(history->Load(command.history));
  }
  if (!command.learn.empty()) {
    PORTOLAN_ASSIGN_OR_RETURN(const Trace trace, ReadTraces(command.learn));
    PORTOLAN_RETURN_IF_ERROR(CheckSameModel(
        absl::StrCat("--learn ", command.learn.front()), trace.header, shape));
    // Both learn what the others need: maps of tokens and of sequences.
    for (const char* policy : {"fmoe", "adaptive"}) {
      PORTOLAN_RETURN_IF_ERROR(LearnTrace(trace, policy, options, *history));
    }
  }
  return history;
}

absl::StatusOr<std::vector<ReplayRow>> RunAll(const ReplayCommand& command,
                                              const Trace& trace) {
  ReplayOptions options;
  options.num_ranks = command.ranks;
  options.policy.distance = command.distance;
  PORTOLAN_ASSIGN_OR_RETURN(options.link,
                            ParseLinkSpec(command.link, "--link"));
  // All of it before the first takes its minutes.
  for (const std::string& memory : command.expert_memory) {
    options.expert_memory = memory;
    for (const std::string& policy : command.policies) {
      PORTOLAN_RETURN_IF_ERROR(CheckReplay(trace.header, policy, options));
    }
  }
  PORTOLAN_ASSIGN_OR_RETURN(
      const std::unique_ptr<History> history,
      PrepareHistory(command, trace.header, options.policy));
  const double layers =
      static_cast<double>(trace.steps.size()) * trace.header.num_layers;
  std::vector<ReplayRow> rows;
  for (const std::string& memory : command.expert_memory) {
    options.expert_memory = memory;
    for (const std::string& policy : command.policies) {
      const double start = ThreadCpuMicroseconds();
      PORTOLAN_ASSIGN_OR_RETURN(ReplayResult result,
                                Replay(trace, policy, options, history.get()));
      rows.push_back(
          {.expert_memory = memory,
           .budget = result.budget,
           .cpu_us_per_layer =
               layers == 0 ? 0.0 : (ThreadCpuMicroseconds() - start) / layers,
           .result = std::move(result)});
      std::fprintf(stderr, "replayed %s at %s\n", policy.c_str(),
                   memory.c_str());
    }
  }
  return rows;
}

absl::Status AtPlot(const ReplayCommand& command, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("--plot ", command.plot, ": ",
                                                  status.message()));
}

absl::Status WritePlot(const ReplayCommand& command,
                       std::span<const ReplayRow> rows, ReplacingFile& file) {
  const std::string svg = PlotReplay(
      rows,
      absl::StrCat("Link ", command.link, ", ", command.ranks, " rank(s)"));
  absl::Status status = file.Write(0, std::as_bytes(std::span(svg)));
  if (status.ok()) status = file.Commit();
  return status.ok() ? status : AtPlot(command, status);
}

// What --why compares: the policy as it is and with one part of it perfect.
void AddAblations(std::vector<std::string>& policies) {
  for (const char* name :
       {"lru", "adaptive", "adaptive+prediction", "adaptive+eviction",
        "adaptive+admission", "oracle"}) {
    if (std::ranges::find(policies, name) == policies.end()) {
      policies.emplace_back(name);
    }
  }
}

absl::Status RunReplay(ReplayCommand command) {
  std::vector<NamedFile> inputs = {{"--history", command.history}};
  for (const std::string& path : command.traces) {
    inputs.push_back({"--trace", path});
  }
  for (const std::string& path : command.learn) {
    inputs.push_back({"--learn", path});
  }
  PORTOLAN_RETURN_IF_ERROR(CheckCanWrite({{"--plot", command.plot}}, inputs));
  if (command.policies.empty()) {
    for (const std::string_view name : PolicyNames()) {
      command.policies.emplace_back(name);
    }
    command.policies.emplace_back("oracle");
  }
  if (command.why) AddAblations(command.policies);
  PORTOLAN_ASSIGN_OR_RETURN(const Trace trace, ReadTraces(command.traces));
  ReplacingFile plot(command.plot);  // before the work
  if (!command.plot.empty()) {
    const absl::Status created = plot.Create();
    if (!created.ok()) return AtPlot(command, created);
  }
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<ReplayRow> rows,
                            RunAll(command, trace));
  const std::string text =
      command.json ? ReplayJson(rows).dump(2) + "\n"
                   : ReplayTable(rows) + (command.why ? LossTable(rows) : "");
  PORTOLAN_RETURN_IF_ERROR(Print(text));
  return command.plot.empty() ? absl::OkStatus()
                              : WritePlot(command, rows, plot);
}

}  // namespace

absl::StatusOr<Trace> ReadTraces(const std::vector<std::string>& paths) {
  for (size_t i = 0; i < paths.size(); ++i) {
    const bool again = std::any_of(
        paths.begin(), paths.begin() + static_cast<ptrdiff_t>(i),
        [&](const std::string& path) {
          std::error_code ignored;
          return std::filesystem::equivalent(path, paths[i], ignored);
        });
    if (!again) continue;
    std::fprintf(stderr, "note: %s is named twice and counts as two runs\n",
                 paths[i].c_str());
  }
  std::vector<NamedTrace> files;
  for (const std::string& path : paths) {
    PORTOLAN_ASSIGN_OR_RETURN(Trace trace, ReadTrace(path));
    if (trace.torn_bytes > 0) {
      std::fprintf(stderr,
                   "note: %s ends in %lld bytes that are no whole "
                   "block; they are left out\n",
                   path.c_str(), static_cast<long long>(trace.torn_bytes));
    }
    files.push_back({.name = path, .trace = std::move(trace)});
  }
  return JoinTraces(std::move(files));
}

void AddReplayCommand(CLI::App& app, int& exit_code) {
  CLI::App* const replay = app.add_subcommand(
      "replay", "Try policies side by side on a recorded trace");
  const auto command = std::make_shared<ReplayCommand>();
  AddFlag(*replay, "--trace", command->traces,
          "Trace files, of each rank of a run; several runs follow each other")
      ->required();
  AddFlag(*replay, "--policy", command->policies,
          "Policies, comma-separated (default: every one, and oracle)")
      ->delimiter(',');
  AddFlag(*replay, "--expert-memory", command->expert_memory,
          "Budgets of a rank, comma-separated: 50%,25%,64MiB")
      ->delimiter(',');
  AddFlag(*replay, "--link", command->link,
          "Bandwidth and latency of expert loads: 1GB/s,50us")
      ->required();
  AddFlag(*replay, "--ranks", command->ranks, "Ranks that share the experts");
  AddFlag(*replay, "--distance", command->distance,
          "Layers ahead that fmoe and eam foretell");
  AddFlag(*replay, "--history", command->history,
          "Saved history that predictors begin with");
  AddHistoryOptions(*replay, command->history_format,
                    command->history_capacity);
  AddFlag(*replay, "--learn", command->learn,
          "Trace files, as --trace, that predictors learn from first");
  AddFlag(*replay, "--map-replacement", command->map_replacement,
          "What a full store of expert maps gives up: the map most similar to "
          "the new one, or of the most similar few the one that foretold worst")
      ->capture_default_str()
      ->check(CLI::IsMember({"similarity", "usefulness"}));
  AddFlag(*replay, "--plot", command->plot,
          "Draw stall and hit rate against memory into this SVG");
  AddSwitch(*replay, "--json", command->json, "Print JSON");
  AddSwitch(*replay, "--why", command->why,
            "Say what adaptive loses to the oracle by cause");
  replay->callback(
      [command, &exit_code] { exit_code = Report(RunReplay(*command)); });
}

}  // namespace portolan
