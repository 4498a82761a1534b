#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "comm/token_exchange.h"
#include "experts/history.h"
#include "launcher/output_files.h"
#include "launcher/prompts.h"
#include "runtime/kernels/activation.h"
#include "runtime/kernels/cpu_path.h"
#include "runtime/kernels/weight_format.h"

namespace CLI {
class App;
}  // namespace CLI

namespace portolan {

// Which ranks there are and how they talk.
struct WorldOptions {
  int ranks = 0;  // > 0: that many ranks as threads of this process
  std::string transport = "auto";  // auto | mpi | shm | local
  double liveness_timeout_s = 2;
  double start_timeout_s = 300;
  bool launched_by_mpi = false;  // by mpirun or srun, as the environment says
  int launched_rank = -1;        // as it says; -1: it does not
  int launched_ranks = 0;        // as it says; 0: it does not
  // Tells this start of the job from all others: 48 bits for the job as the
  // environment names it, then 16 that rise with every restart.
  uint64_t epoch = 0;
  std::string epoch_text;  // the same for people: job 77, restart 2: "77, 2"
  // Set by the subcommands: SIGTERM is theirs to act on, without a limit.
  bool drains = false;

  // True if this process is one rank of several processes.
  bool is_process() const { return ranks == 0 && launched_by_mpi; }

  // Whether such a world can be started from here.
  // Errors: kInvalidArgument naming the flag.
  absl::Status Validate() const;
};

// This process's place among those that mpirun or srun started on its host, by
// the environment; 0 if it was started alone.
int RankOnHost();

// For errors that all processes of a host find, before they meet: lets the
// first one tell it, whose end mpirun makes the end of all. Comes back where
// nobody ended this process within seconds, so that no error is lost.
void LetFirstRankSpeak();
absl::Status OncePerHost(absl::Status status);

// How a job computes: what every subcommand that runs a model shares. Every
// flag also comes from PORTOLAN_<FLAG> in the environment or from the file that
// --config names (TOML).
struct JobOptions : WorldOptions {
  std::string model_dir;
  int threads = 0;  // of each rank; 0: an even share of the node's CPUs
  CombineMode combine = CombineMode::kExact;
  ActivationDtype activations = ActivationDtype::kBf16;
  // Of the experts; a quantised format needs its pack.
  WeightFormat weights = WeightFormat::kBf16;
  WeightFormat dense_weights = WeightFormat::kBf16;
  std::optional<CpuPath> cpu_path;      // default: the best this CPU has
  std::string expert_memory = "all";    // bytes, percent or "all"
  std::string policy = "adaptive";      // of expert loads; see policies.h
  int32_t prefetch_distance = 3;        // layers that hints reach ahead
  std::string expert_link;              // "1GB/s,50us": loads no faster
  std::string pack_dir;                 // of the expert pack; beside the model
  bool experts_in_host_memory = false;  // all, as a tier behind the slots
  std::string history_file;             // read at the start, written at the end
  MapFormat history_format = MapFormat::kExact;
  int32_t history_capacity = HistoryShape{}.iterations;  // maps of each kind
  std::string trace_file;                                // written; see trace.h
  std::string profile_file;       // written; see profile.h
  int32_t batch = 8;              // sequences decoded together, per rank
  int64_t tokens_per_step = 512;  // of one rank
  int64_t kv_memory_bytes = 0;    // of one rank; 0: as the batch needs
  bool share_prefixes = true;     // reuse KV pages of equal beginnings
  int64_t exchange_memory_bytes = 256 << 20;
  int64_t memory_available = 0;  // to this host's ranks; 0: as it says
  double step_timeout_s = 120;

  // Set by the subcommands, not by flags.
  bool needs_tokenizer = true;
  int64_t kv_tokens = 0;   // positions to have room for; 0: as --batch asks
  int64_t logit_rows = 0;  // rows of logits of one step; at least --batch
  bool shares_history = false;  // by a coordinator
  // What tests do to a rank, from PORTOLAN_FAULT (fault.h), and the rank that
  // PORTOLAN_ODD_RANK gives another numerics id.
  std::string fault;
  int32_t odd_rank = -1;

  const CLI::App* command = nullptr;   // whose flags these are
  std::vector<NamedFile> input_files;  // beside those of model and config

  // Errors: kInvalidArgument naming the flag; as CheckCanWrite().
  absl::Status Validate() const;
  // The ranks' own files are there by the names that they get.
  std::vector<NamedFile> WrittenFiles() const;
  std::vector<NamedFile> ReadFiles() const;
  // All but the world and the files to write, which `plan` has not.
  absl::Status ValidateJob() const;
};

// `path`, or where there are several ranks one file for each of them.
std::string FileOfRank(const std::string& path, int rank, int world_size);

// --history-format and --history-capacity.
void AddHistoryOptions(CLI::App& command, MapFormat& format, int32_t& capacity);

void AddWorldOptions(CLI::App& command, WorldOptions& options);
void AddJobOptions(CLI::App& command, JobOptions& options);
// All but the seed: a service draws one for each request that has none.
void AddSamplingOptions(CLI::App& command, SamplingWishes& wishes);

}  // namespace portolan
