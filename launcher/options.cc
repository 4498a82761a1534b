#include "launcher/options.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string_view>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "experts/link_model.h"
#include "experts/memory_budget.h"
#include "experts/policies.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/units.h"

namespace portolan {
namespace {

// --expert-memory -> PORTOLAN_EXPERT_MEMORY.
std::string EnvironmentName(std::string_view flag) {
  return absl::StrCat("PORTOLAN_",
                      absl::AsciiStrToUpper(absl::StrReplaceAll(
                          std::string(flag.substr(2)), {{"-", "_"}})));
}

CLI::Option* WithEnvironment(CLI::Option* option, std::string_view flag) {
  return option->envname(EnvironmentName(flag));
}

template <typename T>
CLI::Option* Add(CLI::App& command, const char* flag, T& value,
                 const char* help) {
  return WithEnvironment(
      command.add_option(flag, value, help)->capture_default_str(), flag);
}

// A flag whose text `parse` turns into a value, or into an error that CLI11
// reports as one of usage.
template <typename T>
CLI::Option* AddParsed(CLI::App& command, const char* flag,
                       std::function<absl::StatusOr<T>(std::string_view)> parse,
                       std::function<void(T)> set, const char* help) {
  CLI::Option* option = command.add_option_function<std::string>(
      flag,
      [flag, parse, set](const std::string& text) {
        absl::StatusOr<T> value = parse(text);
        if (!value.ok()) {
          throw CLI::ValidationError(flag,
                                     std::string(value.status().message()));
        }
        set(*std::move(value));
      },
      help);
  return WithEnvironment(option, flag);
}

void AddChoices(CLI::App& command, JobOptions& options) {
  AddParsed<CpuPath>(
      command, "--cpu", ParseCpuPath,
      [&options](CpuPath path) { options.cpu_path = path; },
      "Kernels to use: scalar, avx2, avx512 or amx (default: the best here)");
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
  Add(command, "--expert-memory", options.expert_memory,
      "Memory for experts of one rank: bytes (512MiB), a share of its own "
      "experts (25%) or all");
  Add(command, "--policy", options.policy,
      "Which experts to keep and to read ahead (see `portolan replay --help`)");
  Add(command, "--prefetch-distance", options.prefetch_distance,
      "Layers that predictions reach ahead")
      ->check(CLI::Range(1, 64));
  Add(command, "--expert-link", options.expert_link,
      "Load experts no faster than BANDWIDTH,LATENCY, such as 1GB/s,50us: for "
      "repeatable experiments");
  Add(command, "--pack-dir", options.pack_dir,
      "Directory of the expert pack (default: the model's, if it has one)");
  Add(command, "--history", options.history_file,
      "Expert-map history: read if it is there, written at the end");
  Add(command, "--trace", options.trace_file,
      "Record what the gates say to this file (one per rank: FILE.0, FILE.1 "
      "... where there are several)");
  Add(command, "--profile", options.profile_file,
      "Write what steps spend their time on, as a Chrome trace, to this file "
      "(one per rank, as --trace)");
  const auto parse = [](std::string_view text) { return ParseBytes(text); };
  AddParsed<int64_t>(
      command, "--kv-memory", parse,
      [&options](int64_t bytes) { options.kv_memory_bytes = bytes; },
      "Memory for keys and values of one rank (default: as --batch needs)");
  AddParsed<int64_t>(
      command, "--exchange-memory", parse,
      [&options](int64_t bytes) { options.exchange_memory_bytes = bytes; },
      "Memory for exchange buffers of one rank; more tokens than fit travel in "
      "rounds (default: 256MiB)");
}

// For the system tests; not shown by --help.
void AddTestFlags(CLI::App& command, JobOptions& options) {
  Add(command, "--fault", options.fault, "")->group("");
  Add(command, "--odd-rank", options.odd_rank, "")->group("");
}

}  // namespace

absl::Status WorldOptions::Validate() const {
  if (ranks > 0 && transport != "auto" && transport != "local") {
    return absl::InvalidArgumentError(
        absl::StrCat("--transport ", transport,
                     " is for processes under mpirun; --ranks runs threads, "
                     "which talk by --transport local"));
  }
  if (is_process() && transport == "local") {
    return absl::InvalidArgumentError(
        "--transport local is for --ranks; processes under mpirun talk by shm "
        "or mpi");
  }
  return absl::OkStatus();
}

absl::Status JobOptions::Validate() const {
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
  PORTOLAN_RETURN_IF_ERROR(CheckCanWrite("--trace", trace_file));
  PORTOLAN_RETURN_IF_ERROR(CheckCanWrite("--history", history_file));
  return WorldOptions::Validate();
}

absl::Status CheckCanWrite(std::string_view flag, const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  const auto refuse = [&](absl::StatusCode code, const char* why) {
    return absl::Status(
        code, absl::StrCat(absl::string_view(flag.data(), flag.size()),
                           ": cannot write ", path, ": ", why));
  };
  const std::filesystem::path file(path);
  const std::string folder =
      file.has_parent_path() ? file.parent_path().string() : ".";
  std::error_code ignored;
  if (std::filesystem::is_directory(file, ignored)) {
    return refuse(absl::StatusCode::kInvalidArgument, "it is a directory");
  }
  if (!std::filesystem::is_directory(folder, ignored)) {
    return refuse(absl::StatusCode::kNotFound, "there is no such directory");
  }
  const bool exists = std::filesystem::exists(file, ignored);
  if (access(exists ? path.c_str() : folder.c_str(), W_OK) != 0) {
    return refuse(absl::StatusCode::kPermissionDenied, "permission denied");
  }
  return absl::OkStatus();
}

void AddWorldOptions(CLI::App& command, WorldOptions& options) {
  Add(command, "--ranks", options.ranks,
      "Run so many ranks as threads of this process")
      ->check(CLI::Range(1, 256));
  Add(command, "--transport", options.transport,
      "How ranks talk: shm inside one node, mpi, local (threads)")
      ->check(CLI::IsMember({"auto", "mpi", "shm", "local"}));
  Add(command, "--liveness-timeout", options.liveness_timeout_s,
      "Seconds of silence after which a rank counts as dead")
      ->check(CLI::Range(0.5, 3600.0));
  options.launched_by_mpi = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr ||
                            std::getenv("PMIX_RANK") != nullptr;
}

void AddJobOptions(CLI::App& command, JobOptions& options) {
  Add(command, "--model", options.model_dir,
      "Directory of a Hugging Face model (config.json, *.safetensors, ...)")
      ->required()
      ->check(CLI::ExistingDirectory);
  AddWorldOptions(command, options);
  Add(command, "--threads", options.threads,
      "Threads of each rank (default: an even share of the node's CPUs)")
      ->check(CLI::Range(1, 1024));
  Add(command, "--batch", options.batch,
      "Sequences that are decoded together on each rank")
      ->check(CLI::Range(1, 4096));
  Add(command, "--tokens-per-step", options.tokens_per_step,
      "Tokens of each rank in one step; longer prompts are cut into chunks")
      ->check(CLI::Range(1, 1 << 20));
  Add(command, "--step-timeout", options.step_timeout_s,
      "Seconds after which a step that does not end is an error")
      ->check(CLI::Range(0.1, 86400.0));
  AddChoices(command, options);
  AddSizes(command, options);
  AddTestFlags(command, options);
}

void AddSamplingOptions(CLI::App& command, SamplingWishes& wishes) {
  Add(command, "--max-tokens", wishes.max_tokens,
      "Tokens to generate (default: up to the context)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31));
  Add(command, "--temperature", wishes.temperature,
      "0 takes the likeliest token");
  Add(command, "--top-k", wishes.top_k, "Keep the k likeliest tokens; 0: all");
  Add(command, "--top-p", wishes.top_p,
      "Keep the likeliest tokens that make up this probability");
  Add(command, "--min-p", wishes.min_p,
      "Drop tokens less likely than this share of the likeliest");
  Add(command, "--repetition-penalty", wishes.repetition_penalty,
      "Above 1: tokens of prompt and answer become less likely again");
  Add(command, "--presence-penalty", wishes.presence_penalty,
      "Taken from the logit of a token that the answer has already");
  Add(command, "--frequency-penalty", wishes.frequency_penalty,
      "As --presence-penalty, for every time that the answer has it");
  Add(command, "--seed", wishes.seed,
      "Seed of every prompt without one of its own (default: 0)")
      ->check(CLI::NonNegativeNumber);
  Add(command, "--stop", wishes.stop,
      "End before this text; may be given several times");
  Add(command, "--stop-token-ids", wishes.stop_token_ids,
      "End after one of these tokens, beside the model's own");
  WithEnvironment(command.add_flag_callback(
                      "--ignore-eos", [&wishes] { wishes.ignore_eos = true; },
                      "Go on past the end-of-text tokens"),
                  "--ignore-eos");
}

}  // namespace portolan
