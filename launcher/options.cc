#include "launcher/options.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <initializer_list>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "comm/agreement.h"
#include "experts/link_model.h"
#include "experts/memory_budget.h"
#include "experts/policies.h"
#include "launcher/flags.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/units.h"
#include "runtime/model/checkpoint/config.h"

namespace portolan {
namespace {

void AddChoices(CLI::App& command, JobOptions& options) {
  AddParsedFlag<CpuPath>(
      command, "--cpu", ParseCpuPath,
      [&options](CpuPath path) { options.cpu_path = path; },
      "Kernels to use: scalar, avx2, avx512, avx512bf16 or amx (default: the "
      "best here)");
  AddParsedFlag<WeightFormat>(
      command, "--weights", ParseWeightFormat,
      [&options](WeightFormat format) { options.weights = format; },
      "Weights of the experts: bf16 (default), or int8 or int4 from a pack "
      "that "
      "`portolan pack --quantize` wrote; the results are those of that model");
  AddParsedFlag<WeightFormat>(
      command, "--dense-weights", ParseWeightFormat,
      [&options](WeightFormat format) { options.dense_weights = format; },
      "Matrices of attention, dense layers and logits: bf16 (default), or int8 "
      "or int4, "
      "quantised as they are loaded; the results are those of that model");
  WithEnvironment(
      command
          .add_option_function<std::string>(
              "--combine",
              [&options](const std::string& mode) {
                options.combine = mode == "reduced" ? CombineMode::kReduced
                                                    : CombineMode::kExact;
              },
              "exact (default): the same bits on any number of ranks; "
              "reduced: fewer bytes travel, other bits")
          ->check(CLI::IsMember({"exact", "reduced"})),
      "--combine");
  WithEnvironment(
      command
          .add_option_function<std::string>(
              "--activations",
              [&options](const std::string& dtype) {
                options.activations = dtype == "f32" ? ActivationDtype::kF32
                                                     : ActivationDtype::kBf16;
              },
              "bf16 (default), or f32: the reference, --cpu scalar only")
          ->check(CLI::IsMember({"bf16", "f32"})),
      "--activations");
}

void AddSizes(CLI::App& command, JobOptions& options) {
  AddFlag(command, "--expert-memory", options.expert_memory,
          "Memory for experts of one rank: bytes (512MiB), a share of its own "
          "experts (25%), or all, which is refused if memory is short (see "
          "`portolan plan`)");
  AddFlag(
      command, "--policy", options.policy,
      "Which experts to keep and to read ahead (see `portolan replay --help`)")
      ->check(CLI::Validator(
          [](const std::string& name) {
            // The flag is named by CLI11 too.
            const absl::Status status = CheckPolicyName(name);
            return std::string(
                absl::StripPrefix(status.message(), "--policy "));
          },
          ""));
  AddFlag(command, "--prefetch-distance", options.prefetch_distance,
          "Layers that predictions reach ahead")
      ->check(CLI::Range(1, 64));
  AddFlag(
      command, "--expert-link", options.expert_link,
      "Load experts no faster than BANDWIDTH,LATENCY, such as 1GB/s,50us: for "
      "repeatable experiments");
  WithEnvironment(
      command
          .add_option_function<std::string>(
              "--expert-source",
              [&options](const std::string& source) {
                options.experts_in_host_memory = source == "host";
              },
              "Where experts wait: files (default), or host: all of them in "
              "host memory beside --expert-memory, to try links at leisure")
          ->check(CLI::IsMember({"files", "host"})),
      "--expert-source");
  AddFlag(command, "--pack-dir", options.pack_dir,
          "Directory of the expert pack (default: the model's, if it has one)");
  AddFlag(
      command, "--history", options.history_file,
      "Expert-map history: read if it is there, written at the end with what "
      "all ranks learnt");
  AddHistoryOptions(command, options.history_format, options.history_capacity);
  AddFlag(
      command, "--trace", options.trace_file,
      "Record what the gates say to this file (one per rank: FILE.0, FILE.1 "
      "... where there are several)");
  AddFlag(
      command, "--profile", options.profile_file,
      "Write what steps spend their time on, as a Chrome trace, to this file "
      "(one per rank, as --trace)");
  const auto parse = [](std::string_view text) { return ParseBytes(text); };
  const auto parse_some = [](std::string_view text) -> absl::StatusOr<int64_t> {
    absl::StatusOr<int64_t> bytes = ParseBytes(text);
    if (bytes.ok() && *bytes == 0) {
      return absl::InvalidArgumentError(
          "0 bytes hold no token; leave it out for as much as --batch needs");
    }
    return bytes;
  };
  AddParsedFlag<int64_t>(
      command, "--kv-memory", parse_some,
      [&options](int64_t bytes) { options.kv_memory_bytes = bytes; },
      "Memory for keys and values of one rank (default: as --batch needs)");
  WithEnvironment(
      command
          .add_option_function<std::string>(
              "--prefix-cache",
              [&options](const std::string& value) {
                options.share_prefixes = value == "on";
              },
              "on (default): reuse keys and values of prompts that begin with "
              "the same tokens; off")
          ->check(CLI::IsMember({"on", "off"})),
      "--prefix-cache");
  AddParsedFlag<int64_t>(
      command, "--exchange-memory", parse,
      [&options](int64_t bytes) { options.exchange_memory_bytes = bytes; },
      "Memory for exchange buffers of one rank; more tokens than fit travel in "
      "rounds (default: 256MiB)");
  AddParsedFlag<int64_t>(
      command, "--memory-available", parse,
      [&options](int64_t bytes) { options.memory_available = bytes; },
      "Memory that all ranks of a host may take (default: what machine and "
      "cgroup leave)");
}

// The first of these variables that is set; empty if none is.
std::string FirstOf(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (const char* value = std::getenv(name); value != nullptr) return value;
  }
  return "";
}

void ReadEpoch(WorldOptions& options) {
  const std::string job =
      FirstOf({"PORTOLAN_LAUNCH_ID", "SLURM_JOB_ID", "PMIX_NAMESPACE"});
  uint64_t restarts = 0;
  (void)absl::SimpleAtoi(
      FirstOf({"PORTOLAN_RESTART_COUNT", "SLURM_RESTART_COUNT"}), &restarts);
  options.epoch =
      Digest(std::as_bytes(std::span(job))) << 16 | (restarts & 0xffff);
  options.epoch_text = absl::StrCat(job.empty() ? "none" : job, ", ", restarts);
}

// For the system tests; not shown by --help.
void AddTestFlags(CLI::App& command, JobOptions& options) {
  AddFlag(command, "--fault", options.fault, "")->group("");
  AddFlag(command, "--odd-rank", options.odd_rank, "")->group("");
}

}  // namespace

absl::Status WorldOptions::Validate() const {
  if (ranks > 0 && launched_by_mpi) {
    return absl::InvalidArgumentError(
        absl::StrCat("--ranks ", ranks,
                     " starts ranks as threads, but this process is a rank of "
                     "mpirun already; drop --ranks, or mpirun"));
  }
  if (ranks > 0 && transport != "auto" && transport != "local") {
    return absl::InvalidArgumentError(
        absl::StrCat("--transport ", transport,
                     " is for processes under mpirun; --ranks runs threads, "
                     "which talk by --transport local"));
  }
  if (!launched_by_mpi && transport != "auto" && transport != "local") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--transport ", transport,
        " is for processes under mpirun: portolan-launch -np N -- portolan "
        "...; or drop it"));
  }
  if (is_process() && transport == "local") {
    return absl::InvalidArgumentError(
        "--transport local is for --ranks; processes under mpirun talk by shm "
        "or mpi");
  }
  return absl::OkStatus();
}

absl::Status JobOptions::ValidateJob() const {
  if (activations == ActivationDtype::kF32 && cpu_path.has_value() &&
      *cpu_path != CpuPath::kScalar) {
    return absl::InvalidArgumentError(
        "--activations f32 is the reference of the scalar path; drop --cpu or "
        "say --cpu scalar");
  }
  if (cpu_path.has_value() && !CpuSupports(*cpu_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--cpu ", std::string(CpuPathName(*cpu_path)),
                     ": this CPU has not got it; see --version"));
  }
  PORTOLAN_RETURN_IF_ERROR(CheckPolicyName(policy));
  // The sizes of a budget are checked when the experts' are known.
  PORTOLAN_RETURN_IF_ERROR(PlanExpertMemory(expert_memory, 0, 1).status());
  if (!expert_link.empty()) {
    PORTOLAN_RETURN_IF_ERROR(ParseLinkSpec(expert_link).status());
  }
  return absl::OkStatus();
}

absl::Status JobOptions::Validate() const {
  PORTOLAN_RETURN_IF_ERROR(ValidateJob());
  PORTOLAN_RETURN_IF_ERROR(CheckCanWrite(WrittenFiles(), ReadFiles()));
  return WorldOptions::Validate();
}

std::vector<NamedFile> JobOptions::WrittenFiles() const {
  std::vector<NamedFile> files = {{"--history", history_file}};
  const int world_size = std::max(ranks, launched_ranks);
  for (const auto& [flag, path] :
       {NamedFile{"--trace", trace_file}, {"--profile", profile_file}}) {
    if (path.empty()) continue;
    for (int rank = 0; rank < std::max(1, world_size); ++rank) {
      files.push_back({flag, FileOfRank(path, rank, world_size)});
    }
  }
  return files;
}

std::vector<NamedFile> JobOptions::ReadFiles() const {
  std::vector<NamedFile> files = input_files;
  const CLI::App* app = command;
  while (app != nullptr && app->get_parent() != nullptr) {
    app = app->get_parent();
  }
  if (app != nullptr && app->get_config_ptr() != nullptr &&
      app->get_config_ptr()->count() > 0) {
    files.push_back({"--config", app->get_config_ptr()->as<std::string>()});
  }
  for (const auto& [flag, directory] :
       {NamedFile{"--model", model_dir}, {"--pack-dir", pack_dir}}) {
    const std::vector<NamedFile> of_model = ModelFilesIn(flag, directory);
    files.insert(files.end(), of_model.begin(), of_model.end());
  }
  return files;
}

std::string FileOfRank(const std::string& path, int rank, int world_size) {
  return world_size <= 1 ? path : absl::StrCat(path, ".", rank);
}

void AddHistoryOptions(CLI::App& command, MapFormat& format,
                       int32_t& capacity) {
  AddParsedFlag<MapFormat>(
      command, "--history-format", ParseMapFormat,
      [&format](MapFormat parsed) { format = parsed; },
      "How expert maps are kept: exact (default), or compact: the largest "
      "probabilities of each layer in 8 bits");
  AddFlag(command, "--history-capacity", capacity,
          "Expert maps of tokens, and of sequences, that are kept")
      ->check(CLI::Range(1, kMaxHistoryCapacity));
}

void AddWorldOptions(CLI::App& command, WorldOptions& options) {
  AddFlag(command, "--ranks", options.ranks,
          "Run so many ranks as threads of this process")
      ->check(CLI::Range(1, 256));
  AddFlag(command, "--transport", options.transport,
          "How ranks talk: shm inside one node, mpi, local (threads)")
      ->check(CLI::IsMember({"auto", "mpi", "shm", "local"}));
  AddFlag(command, "--liveness-timeout", options.liveness_timeout_s,
          "Seconds of silence after which a rank counts as dead")
      ->check(NumberRange(0.5, 3600.0));
  AddFlag(command, "--start-timeout", options.start_timeout_s,
          "Seconds that processes under mpirun wait for each other to start")
      ->check(NumberRange(1.0, 86400.0));
  options.launched_by_mpi = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr ||
                            std::getenv("PMIX_RANK") != nullptr;
  (void)absl::SimpleAtoi(FirstOf({"PMIX_RANK"}), &options.launched_rank);
  if (options.launched_by_mpi) {
    (void)absl::SimpleAtoi(FirstOf({"OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"}),
                           &options.launched_ranks);
  }
  ReadEpoch(options);
}

void LetFirstRankSpeak() {
  constexpr timespec kWait = {.tv_sec = 3, .tv_nsec = 0};
  if (RankOnHost() > 0) nanosleep(&kWait, nullptr);
}

absl::Status OncePerHost(absl::Status status) {
  if (!status.ok()) LetFirstRankSpeak();
  return status;
}

int RankOnHost() {
  for (const char* name : {"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"}) {
    int rank = 0;
    const char* const text = std::getenv(name);
    if (text != nullptr && absl::SimpleAtoi(text, &rank)) return rank;
  }
  return 0;
}

void AddJobOptions(CLI::App& command, JobOptions& options) {
  options.command = &command;
  AddFlag(command, "--model", options.model_dir,
          "Directory of a Hugging Face model (config.json, *.safetensors, ...)")
      ->required()
      ->check(CLI::ExistingDirectory);
  AddWorldOptions(command, options);
  AddFlag(command, "--threads", options.threads,
          "Threads of each rank (default: an even share of the node's CPUs)")
      ->check(CLI::Range(1, 1024));
  AddFlag(command, "--batch", options.batch,
          "Sequences that are decoded together on each rank")
      ->check(CLI::Range(1, 4096));
  AddFlag(command, "--tokens-per-step", options.tokens_per_step,
          "Tokens of each rank in one step; longer prompts are cut into chunks")
      ->check(CLI::Range(1, 1 << 20));
  AddFlag(command, "--step-timeout", options.step_timeout_s,
          "Seconds after which a step that does not end is an error")
      ->check(NumberRange(0.1, 86400.0));
  AddChoices(command, options);
  AddSizes(command, options);
  AddTestFlags(command, options);
}

void AddSamplingOptions(CLI::App& command, SamplingWishes& wishes) {
  AddFlag(command, "--max-tokens", wishes.max_tokens,
          "Tokens to generate (default: up to the context)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31));
  AddFlag(command, "--temperature", wishes.temperature,
          "0 takes the likeliest token")
      ->check(NumberRange(0, kMaxTemperature));
  AddFlag(command, "--top-k", wishes.top_k,
          "Keep the k likeliest tokens; 0: all")
      ->check(CLI::Range(0, INT32_MAX));
  AddFlag(command, "--top-p", wishes.top_p,
          "Keep the likeliest tokens that make up this probability")
      ->check(NumberRange(0, 1, /*above=*/true));
  AddFlag(command, "--min-p", wishes.min_p,
          "Drop tokens less likely than this share of the likeliest")
      ->check(NumberRange(0, 1));
  AddFlag(command, "--repetition-penalty", wishes.repetition_penalty,
          "Above 1: tokens of prompt and answer become less likely again")
      ->check(NumberRange(0, kMaxPenalty, /*above=*/true));
  AddFlag(command, "--presence-penalty", wishes.presence_penalty,
          "Taken from the logit of a token that the answer has already")
      ->check(NumberRange(-kMaxPenalty, kMaxPenalty));
  AddFlag(command, "--frequency-penalty", wishes.frequency_penalty,
          "As --presence-penalty, for every time that the answer has it")
      ->check(NumberRange(-kMaxPenalty, kMaxPenalty));
  AddFlag(
      command, "--logprobs", wishes.logprobs,
      "Return the log-probabilities of the chosen and of N likeliest tokens")
      ->check(CLI::Range(0, 5));
  AddStopFlag(command, [&wishes](std::vector<std::string> stops) {
    wishes.stop = std::move(stops);
  });
  AddFlag(command, "--stop-token-ids", wishes.stop_token_ids,
          "End after one of these tokens, beside the model's own");
  WithEnvironment(command.add_flag_callback(
                      "--ignore-eos", [&wishes] { wishes.ignore_eos = true; },
                      "Go on past the end-of-text tokens"),
                  "--ignore-eos");
}

}  // namespace portolan
