#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "comm/transport.h"
#include "launcher/options.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/dense_weights.h"
#include "runtime/model/checkpoint/expert_tensors.h"
#include "runtime/model/checkpoint/safetensors.h"
#include "runtime/model/tokenizer/tokenizer.h"

namespace portolan {

// Ranks that still read a large model keep the others waiting.
inline constexpr absl::Duration kStartTimeout = absl::Minutes(30);

// What the ranks of a process share, read once.
struct Model {
  ModelConfig config;
  std::unique_ptr<Checkpoint> checkpoint;
  ExpertTensors experts;
  DenseWeights weights;
  std::unique_ptr<Tokenizer> tokenizer;  // null if the model has none
  uint64_t fingerprint = 0;
  std::string notice;  // of OpenModel(): what the user should know, or empty
};

// The model as config.json and the tensors' headers tell it: without weights,
// tokenizer and fingerprint. Errors: as LoadModelConfig(), Checkpoint::Open(),
// ExpertTensors::Find() and CheckUnusedTensors().
absl::StatusOr<Model> OpenModel(const std::string& model_dir);

// Prints the model's notice, if it has one.
void TellNotice(const Model& model);

using RankBody = absl::FunctionRef<absl::Status(Transport&)>;
using RunWorld = absl::FunctionRef<absl::Status(RankBody)>;
using JobBody = absl::FunctionRef<absl::Status(const Model&, RunWorld)>;

// Runs `body` on every rank of the world, without a model.
absl::Status RunWorldOnly(const WorldOptions& options, RankBody body);

// Starts the world that the options and the environment ask for (threads, or
// MPI under mpirun and srun), reads what ranks share, and runs `body` once per
// process; it calls its RunWorld once (as threads, as often as it likes), which
// runs a rank's body on every rank of this process. Ranks that would not fit
// into this host's memory are refused before anything is loaded. Under MPI an
// error ends the process here, with its exit code.
absl::Status RunJob(const JobOptions& options, JobBody body);

}  // namespace portolan
