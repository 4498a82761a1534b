#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/token_exchange.h"
#include "experts/expert_cache.h"
#include "experts/expert_ffn.h"
#include "experts/expert_pack.h"
#include "experts/history.h"
#include "experts/history_mailbox.h"
#include "experts/policy.h"
#include "launcher/job.h"
#include "launcher/options.h"
#include "runtime/base/profile.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/kernels.h"
#include "runtime/model/foresight.h"
#include "runtime/model/forward.h"
#include "runtime/model/history_recorder.h"
#include "runtime/model/trace_recorder.h"
#include "runtime/serving/engine.h"

namespace portolan {

// A pack of this identity fits the model and the format of its slots.
PackIdentity PackIdentityOf(const Model& model,
                            WeightFormat format = WeightFormat::kBf16);

// One rank, wired: the parts list, each part outliving those below it.
class RankRuntime {
 public:
  // Collective: reads this rank's experts and agrees with the others. With a
  // `mailbox` the rank shares what it learns there; without one, the ranks of a
  // job with --history do so at its end.
  // Errors: of any rank.
  static absl::StatusOr<std::unique_ptr<RankRuntime>> Create(
      const JobOptions& options, const Model& model, Transport& transport,
      TokenSink& sink, ForwardObserver* observer = nullptr,
      HistoryMailbox* mailbox = nullptr);
  ~RankRuntime();

  TokenExchange& exchange() { return *exchange_; }
  Engine& engine() { return *engine_; }
  ForwardPass& forward() { return *forward_; }
  KvCache& kv() { return *kv_; }
  // What all ranks of a job agree on, and what a request that has tokens needs
  // to go on with the same bits.
  uint64_t numerics_id() const;
  // Null if nobody watches.
  ForwardObserver* observer() {
    return observers_.empty() ? nullptr : &observers_;
  }
  // Null without --profile.
  Profile* profile() { return profile_.get(); }
  // Writes --profile.
  absl::Status SaveProfile() const;
  // Puts what others have shared so far into the history; before the first
  // step.
  void ApplySharedHistory() {
    if (recorder_ != nullptr) recorder_->ApplyAll();
  }
  // Writes --history: rank 0, with what all ranks learnt. Collective.
  absl::Status SaveHistory();

  const Engine& engine() const { return *engine_; }
  const MoeLayer& moe() const { return *moe_; }
  ExpertMetrics expert_metrics() const { return cache_->metrics(); }
  int64_t expert_memory_bytes() const { return cache_->budget_bytes(); }
  // Of one expert in memory, padding included.
  int64_t expert_slot_bytes() const { return expert_slot_bytes_; }
  ThreadPool& pool() { return *pool_; }
  int64_t staging_bytes() const { return cache_->staging_bytes(); }
  ExpertCache::Counters expert_counters() const { return cache_->counters(); }
  std::string expert_source() const { return cache_->source_name(); }
  // Empty if the policy foretells nothing.
  std::vector<PredictionMetrics> predictions() const;
  // Null if the policy searches no expert maps.
  const Histogram* match_scores() const {
    return foresight_ == nullptr ? nullptr
                                 : foresight_->predictor().match_scores();
  }
  const std::string& policy_name() const { return options_.policy; }
  const History& history() const { return *history_; }
  CpuPath cpu_path() const { return kernels_->path(); }
  int num_threads() const { return pool_->num_threads(); }

 private:
  RankRuntime(const JobOptions& options, const Model& model,
              Transport& transport, ForwardObserver* observer);

  PolicyShape ShapeOfRank() const;
  absl::StatusOr<std::unique_ptr<ChunkedSource>> OpenExpertSource(
      const PolicyShape& shape);
  absl::Status AgreeOnForesight();
  absl::Status LoadResident(int64_t owned, int64_t expert_bytes);
  void WireThreads();
  absl::Status WireForesight();
  absl::Status WireExperts();
  HistoryMailbox* MakeHistoryMailbox();
  void WireRecorder(HistoryMailbox& mailbox);
  absl::Status WireTrace();
  absl::Status WireExchange();
  absl::Status WireEngine(TokenSink& sink);

  const JobOptions& options_;
  const Model& model_;
  Transport& transport_;
  const OwnerTable owners_;
  const std::unique_ptr<Profile> profile_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<History> history_;
  std::unique_ptr<Foresight> foresight_;  // null: the policy foretells nothing
  std::unique_ptr<ExpertCache> cache_;
  std::unique_ptr<TraceRecorder> trace_;  // null without --trace
  // Of a job that has --history, several ranks and no coordinator; else null.
  std::unique_ptr<HistoryMailbox> history_mailbox_;
  std::unique_ptr<HistoryRecorder> recorder_;  // null without a mailbox
  ObserverChain observers_;
  std::vector<std::string> notices_;  // of the wiring
  std::vector<int> allowed_cpus_;     // of this process
  std::vector<int> numa_nodes_;       // MemoryNodes()
  int64_t expert_slot_bytes_ = 0;
  bool experts_resident_ = false;  // all of this rank
  HintMerge hint_merge_ = HintMerge::kSum;
  std::unique_ptr<ExpertFfn> ffn_;
  std::unique_ptr<TokenExchange> exchange_;
  std::unique_ptr<MoeLayer> moe_;
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<ForwardPass> forward_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace portolan
