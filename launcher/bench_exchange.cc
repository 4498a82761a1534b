#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "comm/exchange_bench.h"
#include "launcher/bench.h"
#include "launcher/console.h"
#include "launcher/flags.h"
#include "launcher/job.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/units.h"

namespace portolan {
namespace {

struct BenchExchangeOptions {
  WorldOptions world;
  ExchangeBenchConfig config;
  std::vector<std::string> patterns = {"uniform", "zipf", "all-to-one",
                                       "one-empty-rank"};
  std::vector<int64_t> tokens = {1, 16, 256, 2048};
  bool json = false;
};

double Microseconds(absl::Duration time) {
  return absl::ToDoubleMicroseconds(time);
}

void PrintHeader(const BenchExchangeOptions& options,
                 const Transport& transport) {
  std::printf(
      "# %d ranks over %s, hidden %d, %d experts, top-%d; bf16 rows out, f32 "
      "rows back\n"
      "# S: bytes of the largest rank; time: the slowest rank; busbw = algbw * "
      "(n-1)/n\n"
      "# %-14s %7s %10s %9s %9s %9s %7s %7s %7s %7s %7s %6s %6s %6s\n",
      transport.world_size(), std::string(transport.name()).c_str(),
      options.config.hidden, options.config.num_experts, options.config.top_k,
      "routing", "tokens", "S", "time us", "p50 us", "p99 us", "algbw", "busbw",
      "logical", "dedup", "wire", "max/mn", "rounds", "#wrong");
}

void PrintRow(const std::string& pattern, const ExchangeBenchResult& r) {
  std::printf(
      "  %-14s %7lld %10lld %9.1f %9.1f %9.1f %7.3f %7.3f %7.3f %7.3f %7.3f "
      "%6.2f %6d %6lld\n",
      pattern.c_str(), static_cast<long long>(r.tokens),
      static_cast<long long>(r.largest_bytes), Microseconds(r.mean),
      Microseconds(r.p50), Microseconds(r.p99), r.algbw, r.busbw,
      r.logical_gbps, r.deduplicated_gbps, r.wire_gbps, r.imbalance, r.rounds,
      static_cast<long long>(r.num_wrong));
}

nlohmann::ordered_json ToJson(const std::string& pattern,
                              const ExchangeBenchResult& r) {
  return {{"routing", pattern},
          {"tokens", r.tokens},
          {"largest_bytes", r.largest_bytes},
          {"mean_us", Microseconds(r.mean)},
          {"p50_us", Microseconds(r.p50)},
          {"p99_us", Microseconds(r.p99)},
          {"algbw_gb_s", r.algbw},
          {"busbw_gb_s", r.busbw},
          {"logical_gb_s", r.logical_gbps},
          {"deduplicated_gb_s", r.deduplicated_gbps},
          {"wire_gb_s", r.wire_gbps},
          {"messages", r.messages},
          {"balancedness", r.balancedness},
          {"imbalance", r.imbalance},
          {"rounds", r.rounds},
          {"wrong", r.num_wrong}};
}

absl::Status RunRank(const BenchExchangeOptions& options,
                     Transport& transport) {
  const bool prints = transport.rank() == Rank{0};
  nlohmann::ordered_json json = {{"ranks", transport.world_size()},
                                 {"transport", std::string(transport.name())}};
  if (prints && !options.json) PrintHeader(options, transport);
  int64_t num_wrong = 0;
  for (const std::string& pattern : options.patterns) {
    for (const int64_t tokens : options.tokens) {
      ExchangeBenchConfig config = options.config;
      PORTOLAN_ASSIGN_OR_RETURN(config.pattern, ParseRoutingPattern(pattern));
      config.tokens_per_rank = tokens;
      PORTOLAN_ASSIGN_OR_RETURN(const ExchangeBenchResult result,
                                RunExchangeBench(transport, config));
      num_wrong += result.num_wrong;
      if (!prints) continue;
      if (options.json) {
        json["rows"].push_back(ToJson(pattern, result));
      } else {
        PrintRow(pattern, result);
      }
    }
  }
  if (prints && options.json) std::printf("%s\n", json.dump(2).c_str());
  return num_wrong == 0 ? absl::OkStatus()
                        : absl::InternalError("the exchange gave wrong values");
}

}  // namespace

void AddBenchExchangeCommand(CLI::App& bench, int& exit_code) {
  auto options = std::make_shared<BenchExchangeOptions>();
  CLI::App* command = bench.add_subcommand(
      "exchange", "Time of the token exchange for made-up routing");
  AddWorldOptions(*command, options->world);
  AddFlag(*command, "--routing", options->patterns,
          "Routing patterns, with commas between")
      ->delimiter(',')
      ->check(
          CLI::IsMember({"uniform", "zipf", "all-to-one", "one-empty-rank"}));
  AddFlag(*command, "--tokens", options->tokens,
          "Tokens of each rank, with commas between")
      ->delimiter(',')
      ->check(CLI::Range(0, 1 << 20));
  AddFlag(*command, "--hidden", options->config.hidden, "Values of a row")
      ->check(CLI::Range(32, 1 << 16));
  AddFlag(*command, "--experts", options->config.num_experts, "Experts")
      ->check(CLI::Range(1, 1 << 14));
  AddFlag(*command, "--top-k", options->config.top_k, "Experts of a token")
      ->check(CLI::Range(1, 256));
  AddFlag(*command, "--iterations", options->config.iterations,
          "Timed iterations")
      ->check(CLI::Range(1, 1000000));
  AddSetter<std::string>(
      *command, "--combine",
      [options](const std::string& mode) {
        options->config.combine =
            mode == "reduced" ? CombineMode::kReduced : CombineMode::kExact;
      },
      "exact (default) or reduced")
      ->check(CLI::IsMember({"exact", "reduced"}));
  AddSetter<std::string>(
      *command, "--exchange-memory",
      [options](const std::string& text) {
        const auto bytes = ParseBytes(text);
        if (!bytes.ok()) {
          throw CLI::ValidationError("--exchange-memory",
                                     std::string(bytes.status().message()));
        }
        options->config.buffer_bytes = *bytes;
      },
      "Memory for buffers of one rank; more tokens travel in rounds "
      "(default: 256MiB)");
  AddSwitch(*command, "--json", options->json, "Print JSON");
  command->callback([options, &exit_code] {
    if (options->config.top_k > options->config.num_experts) {
      throw CLI::ValidationError(
          "--top-k",
          absl::StrCat(options->config.top_k,
                       " experts of a token are more than all ",
                       options->config.num_experts, " of --experts"));
    }
    exit_code = Report(RunWorldOnly(options->world, [&](Transport& transport) {
      return RunRank(*options, transport);
    }));
  });
}

}  // namespace portolan
