#include "runtime/kernels/bench_kernels.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "launcher/bench.h"
#include "launcher/console.h"
#include "launcher/flags.h"
#include "runtime/base/cpu_topology.h"
#include "runtime/base/memory_available.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/units.h"

namespace portolan {
namespace {

struct BenchKernelsOptions {
  KernelBenchOptions bench;
  int threads = 0;
  bool json = false;
};

nlohmann::ordered_json ToJson(const KernelBenchRow& row) {
  return {{"name", row.name},
          {"path", row.path},
          {"threads", row.num_threads},
          {"m", row.m},
          {"gb_s", row.gb_s},
          {"gflop_s", row.gflop_s},
          {"percent_of_limit", row.percent_of_limit},
          {"wrong", row.wrong}};
}

absl::Status CheckMemory(const KernelBenchOptions& options) {
  const int64_t wanted = KernelBenchBytes(options);
  const int64_t available = AvailableMemory();
  if (wanted <= available) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "matrices of ", options.n, " x ", options.k, ", their rows and results ",
      "take ", FormatBytes(static_cast<uint64_t>(wanted)), ", ",
      FormatBytes(static_cast<uint64_t>(available)),
      " are available; lower --outputs, --inputs or --rows"));
}

absl::Status RunBenchKernels(BenchKernelsOptions options) {
  for (const CpuPath path : options.bench.paths) {
    if (CpuSupports(path)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("--cpu ", std::string(CpuPathName(path)),
                     ": this CPU has not got it; see --version"));
  }
  ThreadPlan plan = PlanThreads(AllowedCpus(), options.threads, 0, 1);
  options.bench.num_threads = plan.num_threads;
  options.bench.cpus = std::move(plan.cpus);
  PORTOLAN_RETURN_IF_ERROR(CheckMemory(options.bench));
  const std::vector<KernelBenchRow> rows = BenchKernels(options.bench);
  if (options.json) {
    nlohmann::ordered_json json = {{"cpu", CpuModelName()}};
    for (const KernelBenchRow& row : rows) json["rows"].push_back(ToJson(row));
    PORTOLAN_RETURN_IF_ERROR(Print(json.dump(2) + "\n"));
  } else {
    std::printf("# %s\n%s", CpuModelName().c_str(),
                FormatKernelBench(rows).c_str());
  }
  const bool right = std::ranges::all_of(
      rows, [](const KernelBenchRow& row) { return row.wrong == 0; });
  return right ? absl::OkStatus()
               : absl::InternalError("a kernel gave wrong values");
}

}  // namespace

void AddBenchKernelsCommand(CLI::App& bench, int& exit_code) {
  auto options = std::make_shared<BenchKernelsOptions>();
  CLI::App* command = bench.add_subcommand(
      "kernels",
      "GB/s and GFLOP/s of each kernel beside the machine's own limits");
  AddParsedFlag<CpuPath>(
      *command, "--cpu", ParseCpuPath,
      [options](CpuPath path) { options->bench.paths = {path}; },
      "Only these kernels: scalar, avx2, avx512, avx512bf16 or amx");
  AddParsedFlag<WeightFormat>(
      *command, "--weights", ParseWeightFormat,
      [options](WeightFormat format) { options->bench.formats = {format}; },
      "Only matrices of this format: bf16, int8 or int4");
  AddFlag(*command, "--threads", options->threads, "Default: all CPUs")
      ->check(CLI::Range(1, 1024));
  AddFlag(*command, "--rows", options->bench.rows,
          "Rows of x that a matrix is multiplied with")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 12));
  AddFlag(*command, "--outputs", options->bench.n, "Outputs of the matrix")
      ->check(CLI::Range(16, 1 << 16));
  AddFlag(*command, "--inputs", options->bench.k, "Inputs of the matrix")
      ->check(CLI::Range(32, 1 << 16));
  AddFlag(*command, "--seconds", options->bench.seconds_per_row,
          "Time for each line")
      ->check(NumberRange(0.001, 60.0));
  AddSwitch(*command, "--json", options->json, "Print JSON");
  command->callback(
      [options, &exit_code] { exit_code = Report(RunBenchKernels(*options)); });
}

}  // namespace portolan
