#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "launcher/bench.h"
#include "launcher/bench_lock_step.h"
#include "launcher/console.h"
#include "launcher/flags.h"
#include "launcher/memory_plan.h"
#include "launcher/notices.h"
#include "launcher/options.h"
#include "launcher/wiring.h"
#include "launcher/zone_report.h"
#include "runtime/base/cpu_topology.h"
#include "runtime/base/status_macros.h"
#include "runtime/kernels/read_bandwidth.h"
#include "runtime/serving/collectives.h"

namespace portolan {
namespace {

struct BenchModelOptions {
  JobOptions job;
  int64_t prompt_tokens = 128;
  int64_t generate = 128;
  int rounds = 3;
  bool json = false;
};

int64_t PeakMemoryBytes() {
  rusage usage;
  return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_maxrss * int64_t{1024}
                                             : 0;
}

// Receives nothing: the bench samples nothing.
class NullSink : public TokenSink {
 public:
  bool OnToken(int64_t, const GeneratedToken&) override { return false; }
  void OnFinish(int64_t, const SequenceEnd&) override {}
};

// Memory to measure the bandwidth on: more than most caches hold.
constexpr int64_t kBandwidthBytes = int64_t{256} << 20;
constexpr int64_t kCachedBytes = int64_t{64} << 20;

struct Spread {
  double median = 0, least = 0, most = 0;
};

Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t upper = values.size() / 2;
  const size_t lower = (values.size() - 1) / 2;
  return {(values[lower] + values[upper]) / 2, values.front(), values.back()};
}

int64_t SizeOf(const PackedMatrix& matrix) {
  return PackedBytes(matrix.n, matrix.k, matrix.format);
}

// What a decode step of a single sequence reads: all weights but those of the
// experts that its token does not choose and of the embedding.
int64_t WeightBytesPerToken(const Model& model, const RankRuntime& rank) {
  const ModelConfig& config = model.config;
  int64_t bytes = SizeOf(model.weights.lm_head);
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    const LayerWeights& w = model.weights.layers[static_cast<size_t>(layer)];
    for (const PackedMatrix& m : {w.q, w.k, w.v, w.o, w.gate}) {
      bytes += SizeOf(m);
    }
    if (config.IsMoeLayer(layer)) {
      bytes += config.top_k * rank.expert_slot_bytes();
    } else {
      bytes += ExpertSlotBytes(DenseMlpShape(config), model.weights.format);
    }
  }
  return bytes;
}

struct BenchReport {
  int ranks = 1;
  Spread prefill;
  Spread decode;
  int64_t bytes_per_token = 0;
  int64_t peak_memory_bytes = 0;
  double memory_bytes_per_s = 0;  // that the threads of a rank can read
  int64_t num_wrong = 0;          // of all ranks, see LockStep
  BenchRound last;                // zones

  // Share of the memory's bandwidth that decoding one sequence on one rank
  // uses; 0 where a step reads what the batch and the ranks make of it, and
  // where a token's weights are so few that caches may hold them.
  double BandwidthShare() const {
    if (memory_bytes_per_s == 0 || bytes_per_token < kCachedBytes) return 0;
    return decode.median * static_cast<double>(bytes_per_token) /
           memory_bytes_per_s;
  }
};

void PrintZones(const char* phase, const PhaseFigures& figures) {
  if (figures.steps == 0) return;
  std::printf("# %s, rank 0, last round\n%s", phase,
              FormatZones(figures.zones, figures.steps).c_str());
}

void PrintTable(const BenchModelOptions& options, const RankRuntime& rank,
                const BenchReport& report) {
  std::printf("# %s, %s kernels\n", CpuModelName().c_str(),
              std::string(CpuPathName(rank.cpu_path())).c_str());
  std::printf("# %6s %7s %6s %7s %6s  %-28s %-28s %6s\n", "ranks", "threads",
              "batch", "prompt", "gen", "prefill tok/s [min-max]",
              "decode tok/s [min-max]", "#wrong");
  const auto cell = [](const Spread& s) {
    return absl::StrFormat("%.1f [%.1f-%.1f]", s.median, s.least, s.most);
  };
  std::printf("  %6d %7d %6d %7lld %6lld  %-28s %-28s %6lld\n", report.ranks,
              rank.num_threads(), options.job.batch,
              static_cast<long long>(options.prompt_tokens),
              static_cast<long long>(options.generate),
              cell(report.prefill).c_str(), cell(report.decode).c_str(),
              static_cast<long long>(report.num_wrong));
  if (const double share = report.BandwidthShare(); share > 0) {
    std::printf(
        "# decode reads %.1f MB of weights a token: %.0f %% of the %.1f GB/s "
        "that the memory gives\n",
        static_cast<double>(report.bytes_per_token) / 1e6, 100 * share,
        report.memory_bytes_per_s / 1e9);
  }
  if (options.job.profile_file.empty()) return;
  PrintZones("prefill", report.last.prefill);
  PrintZones("decode", report.last.decode);
}

void PrintJson(const BenchModelOptions& options, const RankRuntime& rank,
               const BenchReport& report) {
  const auto spread = [](const Spread& s) {
    return nlohmann::ordered_json{
        {"median", s.median}, {"min", s.least}, {"max", s.most}};
  };
  nlohmann::ordered_json json = {
      {"cpu", CpuModelName()},
      {"kernels", std::string(CpuPathName(rank.cpu_path()))},
      {"ranks", report.ranks},
      {"threads", rank.num_threads()},
      {"batch", options.job.batch},
      {"prompt_tokens", options.prompt_tokens},
      {"gen", options.generate},
      {"rounds", options.rounds},
      {"prefill_tokens_per_s", spread(report.prefill)},
      {"decode_tokens_per_s", spread(report.decode)},
      {"wrong", report.num_wrong},
      {"expert_memory_bytes", rank.expert_memory_bytes()},
      {"expert_source", rank.expert_source()},
      {"disk_bytes_per_token", report.last.decode.disk_bytes_per_token},
      {"peak_memory_bytes", report.peak_memory_bytes},
      {"weight_bytes_per_token", report.bytes_per_token},
      {"memory_bytes_per_s", report.memory_bytes_per_s}};
  if (const double share = report.BandwidthShare(); share > 0) {
    json["decode_share_of_bandwidth"] = share;
  }
  if (!options.job.profile_file.empty()) {
    const BenchRound& last = report.last;
    json["zones_us_per_step"] = {
        {"prefill", ZonesToJson(last.prefill.zones, last.prefill.steps)},
        {"decode", ZonesToJson(last.decode.zones, last.decode.steps)}};
  }
  std::printf("%s\n", json.dump(2).c_str());
}

// What is known at the end of all rounds.
void Complete(const Model& model, RankRuntime& rank,
              const std::vector<double>& prefill,
              const std::vector<double>& decode, BenchReport& report) {
  report.prefill = SpreadOf(prefill);
  report.decode = SpreadOf(decode);
  report.bytes_per_token = WeightBytesPerToken(model, rank);
  report.peak_memory_bytes = PeakMemoryBytes();
}

// What the memory gives, if that is to be told. After the peak was taken, which
// it would raise.
void MeasureMemory(const BenchModelOptions& options, RankRuntime& rank,
                   BenchReport& report) {
  const bool one_reads_all = options.job.batch == 1 && report.ranks == 1 &&
                             options.job.expert_memory == "all";
  if (!one_reads_all) return;
  report.memory_bytes_per_s =
      MeasureReadBandwidth(rank.pool(), kBandwidthBytes);
}

// The sum over all ranks on rank 0, elsewhere the rank's own. Collective.
absl::StatusOr<int64_t> SumToRoot(Transport& transport, int64_t value) {
  PORTOLAN_ASSIGN_OR_RETURN(
      const std::vector<std::string> texts,
      GatherToRoot(transport, absl::StrCat(value), absl::Minutes(10)));
  if (transport.rank() != Rank{0}) return value;
  int64_t sum = 0;
  for (const std::string& text : texts) {
    int64_t part = 0;
    PORTOLAN_CHECK(absl::SimpleAtoi(text, &part));
    sum += part;
  }
  return sum;
}

absl::Status RunRank(const BenchModelOptions& options, const Model& model,
                     Transport& transport) {
  NullSink sink;
  PORTOLAN_ASSIGN_OR_RETURN(
      const std::unique_ptr<RankRuntime> rank,
      RankRuntime::Create(options.job, model, transport, sink));
  if (!options.job.history_file.empty() && transport.rank() == Rank{0}) {
    TellNotice(transport, absl::StrCat("bench model begins with --history ",
                                       options.job.history_file,
                                       " and leaves it as it is"));
  }
  LockStep lock_step({.batch = options.job.batch,
                      .prompt_tokens = options.prompt_tokens,
                      .generate = options.generate,
                      .tokens_per_step = options.job.tokens_per_step,
                      .new_tokens = rank->observer() != nullptr ||
                                    options.job.expert_memory != "all"},
                     model, *rank, ToIndex(transport.rank()));
  PORTOLAN_RETURN_IF_ERROR(lock_step.Run().status());  // warms up
  if (rank->profile() != nullptr) rank->profile()->Clear();
  BenchReport report;
  report.ranks = transport.world_size();
  std::vector<double> prefill, decode;
  for (int i = 0; i < options.rounds; ++i) {
    PORTOLAN_ASSIGN_OR_RETURN(report.last, lock_step.Run());
    prefill.push_back(report.last.prefill.tokens_per_s * report.ranks);
    decode.push_back(report.last.decode.tokens_per_s * report.ranks);
  }
  PORTOLAN_RETURN_IF_ERROR(rank->SaveProfile());
  PORTOLAN_RETURN_IF_ERROR(lock_step.Verify());
  PORTOLAN_ASSIGN_OR_RETURN(report.num_wrong,
                            SumToRoot(transport, lock_step.num_wrong()));
  if (transport.rank() == Rank{0}) {
    Complete(model, *rank, prefill, decode, report);
    MeasureMemory(options, *rank, report);
    (options.json ? PrintJson : PrintTable)(options, *rank, report);
  }
  return report.num_wrong == 0
             ? absl::OkStatus()
             : absl::InternalError(absl::StrCat(
                   report.num_wrong, " logits have other bits than before"));
}

absl::Status RunBenchModel(BenchModelOptions options) {
  options.job.kv_tokens =
      (options.prompt_tokens + options.generate) * options.job.batch;
  options.job.needs_tokenizer = false;
  // All sequences are decoded in one step.
  if (options.job.batch > options.job.tokens_per_step) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--batch ", options.job.batch, " decodes as many tokens in a step, ",
        "--tokens-per-step allows ", options.job.tokens_per_step,
        "; raise it or lower --batch"));
  }
  return RunJob(options.job, [&](const Model& model, RunWorld run_world) {
    const int64_t context = options.prompt_tokens + options.generate;
    if (context > model.config.max_position) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--prompt-tokens and --gen make ", context,
          " positions; the model has ", model.config.max_position));
    }
    PORTOLAN_RETURN_IF_ERROR(CheckKvHoldsSequences(options.job, model.config,
                                                   options.job.batch, context));
    return run_world([&](Transport& transport) {
      return RunRank(options, model, transport);
    });
  });
}

}  // namespace

void AddBenchModelCommand(CLI::App& bench, int& exit_code) {
  auto options = std::make_shared<BenchModelOptions>();
  options->job.batch = 1;
  CLI::App* command = bench.add_subcommand(
      "model", "Prefill and decode tokens/s on random token ids");
  AddJobOptions(*command, options->job);
  AddFlag(*command, "--prompt-tokens", options->prompt_tokens,
          "Tokens of each prompt")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30));
  AddFlag(*command, "--gen", options->generate,
          "Tokens to decode after each prompt")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  AddFlag(*command, "--rounds", options->rounds,
          "Rounds to measure, after one that warms up")
      ->check(CLI::Range(1, 1000));
  AddSwitch(*command, "--json", options->json, "Print JSON");
  command->callback(
      [options, &exit_code] { exit_code = Report(RunBenchModel(*options)); });
}

}  // namespace portolan
