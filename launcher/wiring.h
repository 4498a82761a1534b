#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/token_exchange.h"
#include "experts/expert_cache.h"
#include "experts/expert_ffn.h"
#include "experts/policy.h"
#include "launcher/options.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/kernels.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/dense_weights.h"
#include "runtime/model/checkpoint/expert_tensors.h"
#include "runtime/model/checkpoint/safetensors.h"
#include "runtime/model/forward.h"
#include "runtime/model/tokenizer/tokenizer.h"
#include "runtime/serving/engine.h"

namespace portolan {

// What the ranks of a process share, read once.
struct Model {
  ModelConfig config;
  std::unique_ptr<Checkpoint> checkpoint;
  ExpertTensors experts;
  DenseWeights weights;
  std::unique_ptr<Tokenizer> tokenizer;  // null if the model has none
  uint64_t fingerprint = 0;
};

// One rank, wired: the parts list, each part outliving those below it.
class RankRuntime {
 public:
  // Collective: reads this rank's experts and agrees with the others.
  // Errors: of any rank.
  static absl::StatusOr<std::unique_ptr<RankRuntime>> Create(
      const JobOptions& options, const Model& model, Transport& transport,
      TokenSink& sink, ForwardObserver* observer = nullptr);
  ~RankRuntime();

  TokenExchange& exchange() { return *exchange_; }
  Engine& engine() { return *engine_; }
  ForwardPass& forward() { return *forward_; }
  KvCache& kv() { return *kv_; }
  ForwardObserver* observer() { return observer_; }
  const Engine& engine() const { return *engine_; }
  const MoeLayer& moe() const { return *moe_; }
  ExpertMetrics expert_metrics() const { return cache_->metrics(); }
  int64_t expert_memory_bytes() const { return cache_->budget_bytes(); }
  int64_t expert_bytes_at_start() const {
    return cache_->counters().start_logical_bytes;
  }
  std::string_view policy_name() const { return "lru"; }
  CpuPath cpu_path() const { return kernels_->path(); }
  int num_threads() const { return pool_->num_threads(); }

 private:
  RankRuntime(const JobOptions& options, const Model& model,
              Transport& transport, ForwardObserver* observer);

  PolicyShape ShapeOfRank() const;
  absl::StatusOr<std::unique_ptr<ChunkedSource>> OpenExpertSource(
      std::span<const ExpertId> owned);
  void WireThreads();
  absl::Status WireExperts();
  absl::Status WireExchange();
  absl::Status WireEngine(TokenSink& sink);

  const JobOptions& options_;
  const Model& model_;
  Transport& transport_;
  ForwardObserver* const observer_;
  const OwnerTable owners_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<ExpertCache> cache_;
  std::unique_ptr<ExpertFfn> ffn_;
  std::unique_ptr<TokenExchange> exchange_;
  std::unique_ptr<MoeLayer> moe_;
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<ForwardPass> forward_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<Engine> engine_;
};

using RankBody = absl::FunctionRef<absl::Status(Transport&)>;
using RunWorld = absl::FunctionRef<absl::Status(RankBody)>;
using JobBody = absl::FunctionRef<absl::Status(const Model&, RunWorld)>;

// Starts the world that the options and the environment ask for (threads, or
// MPI under mpirun and srun), reads what ranks share, and runs `body` once per
// process; it calls its RunWorld once, which runs a rank's body on every rank
// of this process. Under MPI an error ends the process here, with its exit
// code.
absl::Status RunJob(const JobOptions& options, JobBody body);

}  // namespace portolan
