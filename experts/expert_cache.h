#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "experts/chunked_source.h"
#include "experts/expert_provider.h"
#include "experts/load_queue.h"
#include "experts/metrics.h"
#include "experts/policy_driver.h"
#include "experts/slot_table.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/mutex.h"
#include "runtime/base/profile.h"
#include "runtime/base/steady_now.h"

namespace portolan {

// Keeps the experts of one rank in a fixed number of slots and loads the others
// when a layer needs them, or before, as the policy says. The slots are
// allocated once, num_slots * slot_bytes, and nothing else ever holds weights
// but the staging buffers, which are counted apart.
//
// One thread of its own drives the source: it alone submits reads and makes
// slots kernel-ready. It never waits for compute, and no read, no packing and
// no compute runs under the lock. An expert is read once however many wait.
//
// Thread-safe, but the rounds of one layer are one thread's. Visit() allocates
// nothing once its buffers have grown. The destructor waits for reads under
// way; nobody may be in Visit() then.
class ExpertCache final : public ExpertProvider {
 public:
  using Clock = std::function<absl::Time()>;

  struct Options {
    int64_t slot_bytes = 0;  // a multiple of 4096
    int32_t staging_buffers = 4;
    int32_t max_attempts = 3;  // of a demand read
    // Logical CPUs that the loader thread may use; empty: those of the thread
    // that creates the cache, which is wrong once that one is bound to a CPU
    // of its own (ThreadPool does so).
    std::vector<int> loader_cpus = {};
    // NUMA nodes that the slots belong to (PlaceMemory()); empty: any.
    std::vector<int> numa_nodes = {};
    // What the model calls each MoE layer, for profiles; empty: the same.
    std::vector<int32_t> layer_names = {};
    Clock clock = SteadyNow;
    Profile* profile = nullptr;  // of the one thread that visits, or null
  };

  // What PolicyDriver's metrics do not tell.
  struct Counters {
    int64_t start_logical_bytes = 0;  // read by LoadAll(), as stored
    int64_t bytes_read = 0;           // from files, alignment included
    int64_t retries = 0;              // demand loads read again
    int64_t failed_speculative = 0;   // given up without harm
    int64_t occupied_bytes_peak = 0;  // slots not empty; <= budget_bytes()
    int64_t resident_bytes = 0;       // slots with an expert that is loaded
  };

  // `shape.num_slots` slots for the experts in `shape.owned`. Policy and shape
  // must belong together. Requires MinExpertSlots() (memory_budget.h).
  // Errors: kResourceExhausted naming the memory.
  static absl::StatusOr<std::unique_ptr<ExpertCache>> Create(
      const Options& options, const PolicyShape& shape,
      std::unique_ptr<CachePolicy> policy,
      std::unique_ptr<ChunkedSource> source);
  ~ExpertCache() override;

  // Fills the slots with every owned expert, in file order. For resident mode:
  // requires as many slots as owned experts. `progress` counts experts.
  // Errors: as Visit().
  absl::Status LoadAll(
      absl::FunctionRef<void(int64_t done, int64_t total)> progress)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Events of a step that the policy needs (policy_driver.h).
  void BeginStep(int64_t num_tokens) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnHints(int32_t layer, int32_t distance,
               std::span<const float> scores) override ABSL_LOCKS_EXCLUDED(mu_);
  void ReadAhead() override ABSL_LOCKS_EXCLUDED(mu_);

  absl::Status VisitRound(
      const LayerRound& at, std::span<const ExpertNeed> needs,
      absl::FunctionRef<absl::Status(std::span<const ReadyExpert>)> compute)
      override ABSL_LOCKS_EXCLUDED(mu_);

  ExpertMetrics metrics() const ABSL_LOCKS_EXCLUDED(mu_);
  Counters counters() const ABSL_LOCKS_EXCLUDED(mu_);

  int64_t budget_bytes() const { return static_cast<int64_t>(slots_.size()); }
  int64_t staging_bytes() const {
    return static_cast<int64_t>(staging_.size());
  }
  std::string source_name() const { return source_->name(); }

 private:
  // The work of one Visit().
  struct Work;
  class WorkHandle;
  struct PlannedChunk {
    LoadQueue::Chunk chunk;
    absl::Time requested;
  };
  // What became of an expert's demand loads.
  struct Failure {
    uint32_t count = 0;
    absl::Status last;
  };

  ExpertCache(const Options& options, const PolicyShape& shape,
              std::unique_ptr<CachePolicy> policy,
              std::unique_ptr<ChunkedSource> source, AlignedBuffer slots,
              AlignedBuffer staging);

  int32_t NameOf(int32_t layer) const;

  // Visit(), step by step.
  void BeginWork(Work& work) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status NextGroup(Work& work) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status FailureOf(const Work& work) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LeaseReady(Work& work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReleaseGroup(Work& work) ABSL_LOCKS_EXCLUDED(mu_);
  void EndWork(Work& work) ABSL_LOCKS_EXCLUDED(mu_);

  absl::Status AwaitLoad(ExpertId id) ABSL_LOCKS_EXCLUDED(mu_);

  // Starts the load of an absent expert into a free slot.
  void StartLoad(ExpertId id, ReadClass read_class)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Frees a slot for a demand load of `incoming`; false if all are held.
  bool MakeRoom(ExpertId incoming) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Evict(ExpertId victim) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Starts reads: of what a Visit() waits for, also while its group is
  // computed, and once all of that is on its way, of what the policy wants to
  // read ahead. Whether there was any to start.
  bool StartReads() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whether nothing that the work waits for is left to be started.
  bool Demand(const Work& work, bool& any) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Speculate() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  LinkState Link() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WakeLoader() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // The loader thread.
  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  bool PlanChunks() ABSL_LOCKS_EXCLUDED(mu_);
  // Whether a load has ended in failure.
  bool Absorb(ChunkDone& done) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FinishLoad(int32_t slot) ABSL_LOCKS_EXCLUDED(mu_);
  void FailLoad(int32_t slot, ReadClass read_class, absl::Status status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  std::span<std::byte> SlotBytes(int32_t slot) const;
  std::span<std::byte> Landing(int32_t slot, int32_t staging) const;

  const Options options_;
  const PolicyShape shape_;
  const std::unique_ptr<ChunkedSource> source_;
  const AlignedBuffer slots_;
  const AlignedBuffer staging_;

  mutable Mutex mu_;
  CondVar changed_;  // a load has ended, a lease was given back
  PolicyDriver driver_ ABSL_GUARDED_BY(mu_);
  SlotTable table_ ABSL_GUARDED_BY(mu_);
  LoadQueue queue_ ABSL_GUARDED_BY(mu_);
  std::vector<Failure> failures_ ABSL_GUARDED_BY(mu_);    // by Index()
  std::vector<ExpertId> evictable_ ABSL_GUARDED_BY(mu_);  // scratch
  std::vector<std::unique_ptr<Work>> idle_work_ ABSL_GUARDED_BY(mu_);
  std::vector<Work*> active_work_ ABSL_GUARDED_BY(mu_);
  Counters counters_ ABSL_GUARDED_BY(mu_);
  int64_t start_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // of LoadAll(), in slots
  std::vector<absl::Time> load_started_ ABSL_GUARDED_BY(mu_);  // by slot
  double service_seconds_ ABSL_GUARDED_BY(mu_) = 0;  // of one load, measured
  absl::Time last_landed_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  // Hints have come and what is needed before what they foretell is not asked
  // for as yet.
  bool hints_wait_ ABSL_GUARDED_BY(mu_) = false;
  bool loader_waits_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  // The loader thread's own.
  std::vector<PlannedChunk> chunks_;
  std::vector<ChunkDone> done_;
  std::vector<int32_t> landed_;  // slots whose load is to be finished

  std::thread loader_;  // last: it uses everything above
};

}  // namespace portolan
