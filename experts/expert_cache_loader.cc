// The loader thread of ExpertCache.

#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>
#include <utility>

#include "experts/expert_cache.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

// Weight of the latest load in the measured time of a load.
constexpr double kServiceWeight = 1.0 / 8;

void BindTo(const std::vector<int>& cpus) {
  if (cpus.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  // A refused binding (a cgroup without these CPUs) costs speed, not results.
  sched_setaffinity(0, sizeof(set), &set);
}

}  // namespace

void ExpertCache::Run() {
  BindTo(options_.loader_cpus);
  // Timeouts of a throttled source are of the size of the default slack, 50 us.
  prctl(PR_SET_TIMERSLACK, 1000);
  while (PlanChunks()) {
    for (const auto& [chunk, requested] : chunks_) {
      source_->Submit({.id = chunk.id,
                       .chunk = chunk.chunk,
                       .read_class = chunk.read_class,
                       .landing = Landing(chunk.slot, chunk.staging),
                       .tag = static_cast<uint64_t>(chunk.slot),
                       .requested = requested});
    }
    done_.clear();
    if (landed_.empty()) {
      source_->Wait(absl::InfiniteDuration(), done_);
      continue;
    }
    // Reads go on while this one is made ready.
    FinishLoad(landed_.front());
    landed_.erase(landed_.begin());
    source_->Wait(absl::ZeroDuration(), done_);
  }
}

// Takes in what is done and fills chunks_ with what is to be submitted; false
// once the cache is closing and no read is under way.
bool ExpertCache::PlanChunks() {
  bool ended = false;
  chunks_.clear();
  {
    MutexLock lock(mu_);
    loader_waits_ = false;
    for (ChunkDone& done : done_) ended |= Absorb(done);
    if (stopping_) return queue_.under_way() > 0;
    do {
      while (std::optional<LoadQueue::Chunk> chunk = queue_.Next()) {
        chunks_.push_back(
            {*chunk, load_started_[static_cast<size_t>(chunk->slot)]});
      }
    } while (StartReads());
    loader_waits_ = landed_.empty();
  }
  if (ended) changed_.NotifyAll();
  return true;
}

bool ExpertCache::Absorb(ChunkDone& done) {
  const auto slot = static_cast<int32_t>(done.tag);
  const ReadClass read_class = queue_.read_class(slot);
  switch (queue_.OnChunkDone(slot, done.status)) {
    case LoadQueue::Outcome::kUnderWay:
      return false;
    case LoadQueue::Outcome::kLanded:
      landed_.push_back(slot);
      return false;
    case LoadQueue::Outcome::kFailed:
      FailLoad(slot, read_class, std::move(done.status));
      return true;
  }
  return false;
}

void ExpertCache::FinishLoad(int32_t slot) {
  ExpertId id;
  std::span<std::byte> landing;
  {
    MutexLock lock(mu_);
    id = table_.id(slot);
    landing = Landing(slot, queue_.staging(slot));
  }

  absl::Status status = source_->Finish(id, landing, SlotBytes(slot));

  {
    MutexLock lock(mu_);
    const ReadClass read_class = queue_.read_class(slot);
    queue_.Remove(slot);
    if (status.ok()) {
      const absl::Time now = options_.clock();
      table_.SetResident(slot);
      driver_.OnLoaded(id, now);
      const absl::Time from =
          std::max(load_started_[static_cast<size_t>(slot)], last_landed_);
      service_seconds_ += kServiceWeight * (absl::ToDoubleSeconds(now - from) -
                                            service_seconds_);
      last_landed_ = now;
    } else {
      FailLoad(slot, read_class, std::move(status));
    }
  }
  changed_.NotifyAll();
}

void ExpertCache::FailLoad(int32_t slot, ReadClass read_class,
                           absl::Status status) {
  const ExpertId id = table_.id(slot);
  table_.Clear(slot);
  driver_.OnLoadFailed(id);
  if (read_class == ReadClass::kSpeculative) {
    ++counters_.failed_speculative;
    return;
  }
  Failure& failure = failures_[shape_.Index(id)];
  ++failure.count;
  failure.last = std::move(status);
}

}  // namespace portolan
