#include "launcher/bench_serve.h"

#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "clients/cc/load_run.h"
#include "launcher/client_flags.h"
#include "launcher/console.h"
#include "launcher/flags.h"
#include "launcher/output_files.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

struct BenchServeOptions {
  ConnectionOptions connection;
  std::string prompts_file;
  v1::SamplingParams params;  // of requests that do not say it themselves
  double rate = 0;            // requests a second; 0: not Poisson
  bool recorded = false;
  bool submit = false;
  int closed = 0;
  int64_t requests = 0;  // 0: each of the file once
  double duration_s = 0;
  uint64_t seed = 0;
  double patience_s = 120;
  bool json = false;
  std::string records_file;

  absl::Status Validate() const {
    if ((rate > 0) + recorded + (closed > 0) != 1) {
      return absl::InvalidArgumentError(
          "say how requests come: one of --rate, --recorded and --closed");
    }
    if (recorded && requests > 0) {
      return absl::InvalidArgumentError(
          "--requests is for --rate and --closed; --recorded sends the file");
    }
    return absl::OkStatus();
  }
};

absl::StatusOr<std::vector<LoadRequest>> ReadRequests(
    const BenchServeOptions& options) {
  std::ifstream file(options.prompts_file, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(
        absl::StrCat("--prompts: cannot open ", options.prompts_file));
  }
  std::ostringstream text;
  text << file.rdbuf();
  absl::StatusOr<std::vector<LoadRequest>> requests =
      ParseLoad(text.str(), options.recorded);
  if (!requests.ok()) {
    return absl::Status(requests.status().code(),
                        absl::StrCat("--prompts: ", options.prompts_file, ", ",
                                     requests.status().message()));
  }
  for (LoadRequest& request : *requests) {
    v1::SamplingParams params = options.params;
    params.MergeFrom(request.request.params());
    *request.request.mutable_params() = std::move(params);
  }
  return requests;
}

// As many as asked for, going round the file, with their arrivals.
absl::StatusOr<std::vector<LoadRequest>> PlanLoad(
    const BenchServeOptions& options) {
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<LoadRequest> file,
                            ReadRequests(options));
  if (options.recorded) return file;
  auto count = static_cast<int64_t>(file.size());
  if (options.requests > 0) {
    count = options.requests;
  } else if (options.duration_s > 0) {
    // Twice what is expected to come; sending stops at the end anyhow.
    const double most = options.rate > 0 ? 2 * options.rate : 10'000;
    count = static_cast<int64_t>(options.duration_s * most) + 10;
  }
  std::vector<LoadRequest> load;
  for (int64_t i = 0; i < count; ++i) {
    load.push_back(file[static_cast<size_t>(i) % file.size()]);
  }
  if (options.rate > 0) {
    const std::vector<absl::Duration> arrivals =
        PoissonArrivals(options.rate, count, options.seed);
    for (size_t i = 0; i < load.size(); ++i) load[i].arrival = arrivals[i];
  }
  return load;
}

void PrintSpread(const char* name, const Spread& spread) {
  std::printf("%-12s %9.1f %9.1f %9.1f %9.1f %9.1f\n", name, spread.mean * 1e3,
              spread.p50 * 1e3, spread.p90 * 1e3, spread.p99 * 1e3,
              spread.max * 1e3);
}

void PrintTable(const LoadSummary& summary) {
  std::printf(
      "%lld requests, %lld done in %.1f s: offered %.2f/s, done %.2f/s, %.1f "
      "tokens/s\n",
      static_cast<long long>(summary.requests),
      static_cast<long long>(summary.done), summary.seconds,
      summary.offered_per_s, summary.done_per_s, summary.tokens_per_s);
  for (const auto& [code, count] : summary.errors) {
    std::printf("%-20s %lld\n", code.c_str(), static_cast<long long>(count));
  }
  std::printf("%-12s %9s %9s %9s %9s %9s\n", "ms", "mean", "p50", "p90", "p99",
              "max");
  PrintSpread("TTFT", summary.ttft);
  PrintSpread("TPOT", summary.tpot);
  PrintSpread("end to end", summary.end_to_end);
  PrintSpread("sent late", summary.late);
}

absl::Status WriteRecords(const std::string& path,
                          const std::vector<LoadRecord>& records) {
  if (path.empty()) return absl::OkStatus();
  std::ofstream file(path, std::ios::binary);
  for (const LoadRecord& record : records) file << ToJson(record) << '\n';
  file.close();
  if (file) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("--records: cannot write ", path));
}

absl::Status BenchServe(const BenchServeOptions& options) {
  PORTOLAN_RETURN_IF_ERROR(
      CheckCanWrite({{"--records", options.records_file}},
                    {{"--prompts", options.prompts_file}}));
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<LoadRequest> load,
                            PlanLoad(options));
  PORTOLAN_ASSIGN_OR_RETURN(const Connection connection,
                            Connection::Open(options.connection));
  LoadOptions how;
  how.closed = options.closed;
  how.submit = options.submit;
  how.patience = absl::Seconds(options.patience_s);
  if (options.duration_s > 0) how.duration = absl::Seconds(options.duration_s);
  Interruption interruption;
  const std::vector<LoadRecord> records =
      RunLoad(connection, load, how, interruption);
  PORTOLAN_RETURN_IF_ERROR(WriteRecords(options.records_file, records));
  const LoadSummary summary = Summarize(records);
  if (options.json) {
    std::printf("%s\n", ToJson(summary).c_str());
  } else {
    PrintTable(summary);
  }
  if (summary.done > 0) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("not one request was done; is there a service at ",
                   options.connection.coordinator,
                   "? (--coordinator, see the codes above)"));
}

void AddLoadFlags(CLI::App& command, BenchServeOptions& options) {
  AddFlag(command, "--rate", options.rate,
          "Open loop: so many requests a second, at random (Poisson)")
      ->check(CLI::Range(1e-3, 1e6));
  AddSwitch(command, "--recorded", options.recorded,
            "Open loop: each line of --prompts at its \"arrival_s\"");
  AddFlag(command, "--closed", options.closed,
          "Closed loop: so many requests in work all the time; the "
          "rate that comes out is the service's capacity")
      ->check(CLI::Range(1, 100'000));
  AddFlag(command, "--requests", options.requests,
          "How many, going round the file (default: each once)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  AddFlag(command, "--duration", options.duration_s,
          "Seconds after which no more are sent")
      ->check(NumberRange(0.0, 1e6));
  AddSwitch(command, "--submit", options.submit,
            "Hand requests over instead of streaming their tokens: times "
            "are those of their acceptance");
  AddSeedFlag(
      command, [&options](uint64_t seed) { options.seed = seed; },
      "Seed of the arrivals");
  AddFlag(command, "--patience", options.patience_s,
          "Seconds that the last ones may take before they are "
          "cancelled")
      ->check(NumberRange(0.0, 1e6));
}

}  // namespace

void AddBenchServeCommand(CLI::App& bench, int& exit_code) {
  auto options = std::make_shared<BenchServeOptions>();
  CLI::App* command = bench.add_subcommand(
      "serve",
      "Load a live service and time its answers, in an open loop from the "
      "moment that a request was due; nothing is retried");
  AddConnectionFlags(*command, options->connection);
  AddFlag(*command, "--prompts", options->prompts_file,
          "JSONL file of prompts, each with sampling fields if wanted")
      ->required();
  AddLoadFlags(*command, *options);
  AddSetter<uint32_t>(
      *command, "--max-tokens",
      [options](uint32_t v) { options->params.set_max_tokens(v); },
      "Tokens of requests that do not say it themselves");
  AddSetter<double>(
      *command, "--temperature",
      [options](double v) { options->params.set_temperature(v); },
      "Temperature of requests that do not say it themselves");
  AddSwitchFunction(
      *command, "--ignore-eos",
      [options](int64_t) { options->params.set_ignore_eos(true); },
      "Go on past the end-of-sequence token");
  AddFlag(*command, "--records", options->records_file,
          "Write one JSON object per request to this file");
  AddSwitch(*command, "--json", options->json, "Print JSON");
  command->callback([options, &exit_code] {
    const absl::Status usage = options->Validate();
    if (!usage.ok()) {
      throw CLI::ValidationError(std::string(usage.message()));
    }
    exit_code = Report(BenchServe(*options));
  });
}

}  // namespace portolan
