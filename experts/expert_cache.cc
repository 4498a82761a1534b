#include "experts/expert_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "experts/direct_file.h"
#include "experts/memory_budget.h"
#include "runtime/base/check.h"
#include "runtime/base/cpu_topology.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

// What a load is taken to cost until one has been measured.
constexpr double kFirstGuessBytesPerSecond = 1e9;

// Demand loads under way over a link that carries one at a time: that one, and
// one to follow at once.
constexpr int32_t kDemandAheadOfLink = 2;

// PolicyDriver's rules want two slots; a rank of fewer experts has them all.
PolicyShape DriverShape(PolicyShape shape) {
  shape.num_slots = std::max(shape.num_slots, 2);
  return shape;
}

}  // namespace

struct ExpertCache::Work {
  struct Leased {
    int32_t slot = 0;
    uint32_t generation = 0;
  };

  LayerRound at;
  std::span<const ExpertNeed> needs;
  std::vector<int32_t> pending;         // needs to be computed
  std::vector<uint32_t> seen_failures;  // by need, before this visit
  std::vector<ReadyExpert> group;       // leased now
  std::vector<Leased> leased;           // the same, in the same order
  absl::Duration stall;

  ExpertId IdOf(int32_t need) const {
    return {at.layer, needs[static_cast<size_t>(need)].expert};
  }
};

// Lends a Work for the time of a visit, so that none is allocated for each.
class ExpertCache::WorkHandle {
 public:
  explicit WorkHandle(ExpertCache& cache) : cache_(cache) {
    MutexLock lock(cache_.mu_);
    if (cache_.idle_work_.empty()) {
      work_ = std::make_unique<Work>();
    } else {
      work_ = std::move(cache_.idle_work_.back());
      cache_.idle_work_.pop_back();
    }
  }
  WorkHandle(const WorkHandle&) = delete;
  WorkHandle& operator=(const WorkHandle&) = delete;
  ~WorkHandle() {
    MutexLock lock(cache_.mu_);
    cache_.idle_work_.push_back(std::move(work_));
  }

  Work& work() const { return *work_; }

 private:
  ExpertCache& cache_;
  std::unique_ptr<Work> work_;
};

absl::StatusOr<std::unique_ptr<ExpertCache>> ExpertCache::Create(
    const Options& options, const PolicyShape& shape,
    std::unique_ptr<CachePolicy> policy,
    std::unique_ptr<ChunkedSource> source) {
  PORTOLAN_CHECK(options.slot_bytes > 0 &&
                 options.slot_bytes % int64_t{kDirectAlignment} == 0);
  const auto num_owned = static_cast<int64_t>(shape.owned.size());
  PORTOLAN_CHECK(shape.num_slots >= MinExpertSlots(num_owned) &&
                 shape.num_slots <= num_owned);
  PORTOLAN_CHECK(options.staging_buffers >= 1 && options.max_attempts >= 1);
  PORTOLAN_ASSIGN_OR_RETURN(
      AlignedBuffer slots,
      AlignedBuffer::Allocate(static_cast<size_t>(shape.num_slots) *
                              static_cast<size_t>(options.slot_bytes)));
  PlaceMemory(slots.bytes(), options.numa_nodes);
  PORTOLAN_ASSIGN_OR_RETURN(
      AlignedBuffer staging,
      AlignedBuffer::Allocate(static_cast<size_t>(options.staging_buffers) *
                              AlignUp(source->staging_bytes())));
  return std::unique_ptr<ExpertCache>(
      new ExpertCache(options, shape, std::move(policy), std::move(source),
                      std::move(slots), std::move(staging)));
}

ExpertCache::ExpertCache(const Options& options, const PolicyShape& shape,
                         std::unique_ptr<CachePolicy> policy,
                         std::unique_ptr<ChunkedSource> source,
                         AlignedBuffer slots, AlignedBuffer staging)
    : options_(options),
      shape_(shape),
      source_(std::move(source)),
      slots_(std::move(slots)),
      staging_(std::move(staging)),
      driver_(DriverShape(shape), std::move(policy)),
      table_(shape.num_slots, shape.num_layers, shape.num_experts),
      queue_({.num_slots = shape.num_slots,
              .num_staging =
                  source_->staging_bytes() > 0 ? options.staging_buffers : 0,
              .depth = source_->queue_depth(),
              .speculative_depth = source_->speculative_depth(),
              .max_attempts = options.max_attempts}),
      failures_(shape.num_ids()),
      load_started_(static_cast<size_t>(shape.num_slots)),
      service_seconds_(static_cast<double>(options.slot_bytes) /
                       kFirstGuessBytesPerSecond) {
  evictable_.reserve(static_cast<size_t>(shape.num_slots));
  loader_ = std::thread([this] { Run(); });
}

ExpertCache::~ExpertCache() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
  }
  source_->Wake();
  changed_.NotifyAll();
  loader_.join();
}

absl::Status ExpertCache::LoadAll(
    absl::FunctionRef<void(int64_t done, int64_t total)> progress) {
  PORTOLAN_CHECK(static_cast<size_t>(shape_.num_slots) == shape_.owned.size());
  std::vector<ExpertId> order = shape_.owned;
  std::ranges::sort(order, {},
                    [&](ExpertId id) { return source_->FileOrder(id); });
  const auto total = static_cast<int64_t>(order.size());
  {
    MutexLock lock(mu_);
    PORTOLAN_CHECK(table_.num_free() == shape_.num_slots);
    start_bytes_ = total * shape_.expert_bytes;
    for (const ExpertId id : order) {
      counters_.start_logical_bytes += source_->LogicalBytes(id);
      StartLoad(id, ReadClass::kDemand);
    }
    WakeLoader();
  }
  int64_t done = 0;
  for (const ExpertId id : order) {
    PORTOLAN_RETURN_IF_ERROR(AwaitLoad(id));
    progress(++done, total);
  }
  return absl::OkStatus();
}

absl::Status ExpertCache::AwaitLoad(ExpertId id) {
  MutexLock lock(mu_);
  while (driver_.residence(id) == Residence::kReading && !stopping_) {
    changed_.Wait(mu_);
  }
  if (driver_.residence(id) == Residence::kResident) return absl::OkStatus();
  if (stopping_) return absl::CancelledError("the expert cache is closing");
  return failures_[shape_.Index(id)].last;
}

void ExpertCache::BeginStep(int64_t num_tokens) {
  MutexLock lock(mu_);
  driver_.BeginStep(num_tokens, options_.clock());
}

void ExpertCache::OnHints(int32_t layer, int32_t distance,
                          std::span<const float> scores) {
  MutexLock lock(mu_);
  driver_.OnHints(layer, distance, scores, options_.clock());
  hints_wait_ = true;
}

void ExpertCache::ReadAhead() {
  MutexLock lock(mu_);
  hints_wait_ = false;
  StartReads();
}

absl::Status ExpertCache::VisitRound(
    const LayerRound& at, std::span<const ExpertNeed> needs,
    absl::FunctionRef<absl::Status(std::span<const ReadyExpert>)> compute) {
  const WorkHandle handle(*this);
  Work& work = handle.work();
  work.at = at;
  work.needs = needs;
  BeginWork(work);
  absl::Status status;
  while (status.ok() && !work.pending.empty()) {
    status = NextGroup(work);
    if (!status.ok()) break;
    status = compute(work.group);
    ReleaseGroup(work);
  }
  EndWork(work);
  return status;
}

int32_t ExpertCache::NameOf(int32_t layer) const {
  return options_.layer_names.empty()
             ? layer
             : options_.layer_names[static_cast<size_t>(layer)];
}

void ExpertCache::BeginWork(Work& work) {
  work.pending.clear();
  work.seen_failures.clear();
  work.group.clear();
  work.leased.clear();
  work.stall = absl::ZeroDuration();
  MutexLock lock(mu_);
  if (work.at.is_first()) {
    driver_.BeginLayer(work.at.layer, work.needs, options_.clock());
  } else {
    driver_.ContinueLayer(work.at.layer, work.needs, options_.clock());
  }
  for (size_t need = 0; need < work.needs.size(); ++need) {
    const ExpertId id = work.IdOf(static_cast<int32_t>(need));
    table_.AddWish(id);
    work.pending.push_back(static_cast<int32_t>(need));
    work.seen_failures.push_back(failures_[shape_.Index(id)].count);
  }
  active_work_.push_back(&work);
}

// Leases what is ready, waiting if nothing is; starts loads for the rest first,
// so that they run while the group is computed.
absl::Status ExpertCache::NextGroup(Work& work) {
  MutexLock lock(mu_);
  while (true) {
    PORTOLAN_RETURN_IF_ERROR(FailureOf(work));
    LeaseReady(work);
    hints_wait_ = false;
    StartReads();
    if (!work.group.empty()) return absl::OkStatus();
    const ProfileScope zone(options_.profile, Zone::kExpertWait,
                            NameOf(work.at.layer));
    const absl::Time from = options_.clock();
    changed_.Wait(mu_);
    work.stall += options_.clock() - from;
  }
}

absl::Status ExpertCache::FailureOf(const Work& work) const {
  if (stopping_) return absl::CancelledError("the expert cache is closing");
  for (const int32_t need : work.pending) {
    const Failure& failure = failures_[shape_.Index(work.IdOf(need))];
    if (failure.count != work.seen_failures[static_cast<size_t>(need)]) {
      return failure.last;
    }
  }
  return absl::OkStatus();
}

void ExpertCache::LeaseReady(Work& work) {
  size_t num_left = 0;
  for (const int32_t need : work.pending) {
    const std::optional<int32_t> slot = table_.Find(work.IdOf(need));
    if (slot && table_.state(*slot) == SlotTable::State::kResident) {
      work.leased.push_back({*slot, table_.Lease(*slot)});
      work.group.push_back({need, SlotBytes(*slot).data()});
    } else {
      work.pending[num_left++] = need;
    }
  }
  work.pending.resize(num_left);
}

bool ExpertCache::StartReads() {
  bool any = false;
  bool all_demanded = true;
  for (const Work* work : active_work_) all_demanded &= Demand(*work, any);
  if (all_demanded) any |= Speculate();
  if (any) WakeLoader();
  return any;
}

bool ExpertCache::Demand(const Work& work, bool& any) {
  // What has failed is not read again for who is yet to be told.
  if (!FailureOf(work).ok()) return false;
  const int32_t most =
      source_->link() ? kDemandAheadOfLink : source_->queue_depth() + 1;
  for (const int32_t need : work.pending) {
    const ExpertId id = work.IdOf(need);
    if (const std::optional<int32_t> slot = table_.Find(id)) {
      if (table_.state(*slot) == SlotTable::State::kReading) {
        any |= queue_.Promote(*slot);
      }
    } else {
      // A slot claimed before the source can fill it is one that nothing uses.
      if (queue_.num_loads() - queue_.num_speculative() >= most) return false;
      if (!MakeRoom(id)) return false;
      StartLoad(id, ReadClass::kDemand);
      any = true;
    }
  }
  return true;
}

void ExpertCache::ReleaseGroup(Work& work) {
  {
    MutexLock lock(mu_);
    for (size_t i = 0; i < work.group.size(); ++i) {
      table_.Release(work.leased[i].slot, work.leased[i].generation);
      table_.DropWish(work.IdOf(work.group[i].need));
    }
    work.group.clear();
    work.leased.clear();
  }
  changed_.NotifyAll();
}

void ExpertCache::EndWork(Work& work) {
  {
    MutexLock lock(mu_);
    for (const int32_t need : work.pending) table_.DropWish(work.IdOf(need));
    if (work.at.is_last()) {
      driver_.EndLayer(work.at.layer, work.stall, options_.clock());
    } else {
      driver_.EndRound(work.stall);
    }
    std::erase(active_work_, &work);
    hints_wait_ = false;
    StartReads();
  }
  if (!work.pending.empty()) changed_.NotifyAll();
}

void ExpertCache::StartLoad(ExpertId id, ReadClass read_class) {
  const int32_t slot = table_.StartReading(id);
  driver_.OnLoadStarted(id, read_class);
  queue_.Add(slot, id, read_class, source_->NumChunks(id));
  load_started_[static_cast<size_t>(slot)] = options_.clock();
  const int64_t occupied =
      int64_t{table_.num_slots() - table_.num_free()} * options_.slot_bytes;
  PORTOLAN_CHECK(occupied <= budget_bytes());
  counters_.occupied_bytes_peak =
      std::max(counters_.occupied_bytes_peak, occupied);
}

bool ExpertCache::MakeRoom(ExpertId incoming) {
  if (table_.num_free() > 0) return true;
  table_.ListEvictable(evictable_);
  if (evictable_.empty()) return false;
  Evict(driver_.ChooseVictim(evictable_, incoming, options_.clock()));
  return true;
}

void ExpertCache::Evict(ExpertId victim) {
  const std::optional<int32_t> slot = table_.Find(victim);
  PORTOLAN_CHECK(slot && table_.state(*slot) == SlotTable::State::kResident);
  table_.Clear(*slot);
  driver_.OnEvicted(victim, options_.clock());
}

// Starts what the policy wants to read ahead, as long as its first chunk could
// go at once.
bool ExpertCache::Speculate() {
  // With a slot for every expert, LoadAll() or demand brings each of them once.
  const auto slots = static_cast<size_t>(table_.num_slots());
  if (slots == shape_.owned.size() || hints_wait_) return false;
  const int32_t most = table_.num_slots() - 2;
  bool any = false;
  while (!stopping_ && queue_.CanSpeculate() &&
         queue_.num_speculative() < most) {
    table_.ListEvictable(evictable_);
    const std::optional<Prefetch> prefetch = driver_.NextPrefetch(
        evictable_, table_.num_free() > 0, Link(), options_.clock());
    if (!prefetch) break;
    if (prefetch->victim) Evict(*prefetch->victim);
    StartLoad(prefetch->id, ReadClass::kSpeculative);
    any = true;
  }
  return any;
}

LinkState ExpertCache::Link() const {
  LinkState state;
  if (const std::optional<LinkSpec> link = source_->link()) {
    state.bytes_per_second = link->bytes_per_second;
    state.latency = link->latency;
  } else {
    state.bytes_per_second =
        static_cast<double>(options_.slot_bytes) / service_seconds_;
  }
  state.chunk_bytes =
      shape_.expert_bytes / source_->NumChunks(shape_.owned.front());
  return state;
}

void ExpertCache::WakeLoader() {
  if (std::exchange(loader_waits_, false)) source_->Wake();
}

ExpertMetrics ExpertCache::metrics() const {
  MutexLock lock(mu_);
  ExpertMetrics metrics = driver_.metrics();
  metrics.demand_bytes -= start_bytes_;
  return metrics;
}

ExpertCache::Counters ExpertCache::counters() const {
  MutexLock lock(mu_);
  Counters counters = counters_;
  counters.bytes_read = source_->bytes_read();
  counters.retries = queue_.num_retries();
  counters.resident_bytes =
      int64_t{table_.num_resident()} * options_.slot_bytes;
  return counters;
}

std::span<std::byte> ExpertCache::SlotBytes(int32_t slot) const {
  const auto bytes = static_cast<size_t>(options_.slot_bytes);
  return slots_.bytes().subspan(static_cast<size_t>(slot) * bytes, bytes);
}

std::span<std::byte> ExpertCache::Landing(int32_t slot, int32_t staging) const {
  if (staging < 0) return SlotBytes(slot);
  const size_t bytes = AlignUp(source_->staging_bytes());
  return staging_.bytes().subspan(static_cast<size_t>(staging) * bytes, bytes);
}

}  // namespace portolan
