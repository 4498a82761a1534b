#include "experts/simulated_cache.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"

namespace portolan {

SimulatedCache::SimulatedCache(const PolicyShape& shape,
                               std::unique_ptr<CachePolicy> policy,
                               const LinkSpec& link, int64_t chunk_bytes)
    : shape_(shape),
      spec_(link),
      chunk_bytes_(chunk_bytes),
      driver_(shape, std::move(policy)),
      link_(link),
      phase_(shape.num_ids(), Phase::kIdle),
      chunks_left_(shape.num_ids(), 0),
      demanded_(shape.num_ids(), false) {
  PORTOLAN_CHECK(chunk_bytes > 0);
}

LinkState SimulatedCache::link_state() const {
  return {.bytes_per_second = spec_.bytes_per_second,
          .latency = spec_.latency,
          .chunk_bytes = chunk_bytes_};
}

ExpertMetrics SimulatedCache::metrics() const {
  ExpertMetrics metrics = driver_.metrics();
  metrics.demand_bytes -= start_bytes_;
  return metrics;
}

void SimulatedCache::LoadAll() {
  PORTOLAN_CHECK(used_slots_ == 0 &&
                 std::ssize(shape_.owned) <= shape_.num_slots);
  for (const ExpertId id : shape_.owned) {
    driver_.OnLoadStarted(id, ReadClass::kDemand);
    driver_.OnLoaded(id, now_);
    residents_.push_back(id);
    ++used_slots_;
    start_bytes_ += shape_.expert_bytes;
  }
}

void SimulatedCache::AdvanceTo(absl::Time time) {
  StartReads();
  while (ArriveNext(time)) {
  }
  now_ = std::max(now_, time);
}

bool SimulatedCache::ArriveNext(absl::Time limit) {
  std::optional<uint64_t> tag = link_.PopArrived(now_);
  if (!tag) {
    if (link_.NextArrival() > limit) return false;
    now_ = link_.NextArrival();
    tag = link_.PopArrived(now_);
    PORTOLAN_CHECK(tag.has_value());
  }
  Arrive(*tag);
  StartReads();
  return true;
}

void SimulatedCache::Arrive(uint64_t tag) {
  const auto index = static_cast<size_t>(tag);
  --chunks_on_link_;
  if (--chunks_left_[index] > 0) return;
  ++loads_;
  const auto experts = static_cast<size_t>(shape_.num_experts);
  const ExpertId id{static_cast<int32_t>(index / experts),
                    static_cast<int32_t>(index % experts)};
  residents_.push_back(id);
  if (demanded_[index]) {
    demanded_[index] = false;
    --num_demanded_;
  }
  driver_.OnLoaded(id, now_);
}

void SimulatedCache::StartReads() {
  if (!StartDemand()) return;
  while (chunks_on_link_ == 0) {
    const std::optional<Prefetch> prefetch = driver_.NextPrefetch(
        Evictable(), used_slots_ < shape_.num_slots, link_state(), now_);
    if (!prefetch) return;
    if (prefetch->victim) Evict(*prefetch->victim);
    StartLoad(prefetch->id, ReadClass::kSpeculative);
  }
}

void SimulatedCache::StartLoad(ExpertId id, ReadClass read_class) {
  PORTOLAN_CHECK(used_slots_ < shape_.num_slots);
  ++used_slots_;
  driver_.OnLoadStarted(id, read_class);
  const size_t index = shape_.Index(id);
  for (int64_t left = shape_.expert_bytes; left > 0; left -= chunk_bytes_) {
    const int64_t bytes = std::min(left, chunk_bytes_);
    link_.Submit(index, bytes, left == shape_.expert_bytes, read_class, now_);
    ++chunks_left_[index];
    ++chunks_on_link_;
  }
}

void SimulatedCache::Evict(ExpertId id) {
  const auto at = std::ranges::find(residents_, id);
  PORTOLAN_CHECK(at != residents_.end());
  *at = residents_.back();
  residents_.pop_back();
  --used_slots_;
  driver_.OnEvicted(id, now_);
}

std::span<const ExpertId> SimulatedCache::Evictable() {
  evictable_.clear();
  std::ranges::copy_if(
      residents_, std::back_inserter(evictable_),
      [this](ExpertId id) { return phase_[shape_.Index(id)] == Phase::kIdle; });
  return evictable_;
}

SimulatedCache::Phase& SimulatedCache::phase(const ExpertNeed& need) {
  return phase_[shape_.Index({layer_, need.expert})];
}

void SimulatedCache::SetDemanded(ExpertId id) {
  demanded_[shape_.Index(id)] = true;
  ++num_demanded_;
}

bool SimulatedCache::StartDemand() {
  for (const ExpertNeed& need : needs_) {
    const ExpertId id{layer_, need.expert};
    if (phase(need) != Phase::kPending) continue;
    const Residence residence = driver_.residence(id);
    if (residence == Residence::kResident) continue;
    if (residence == Residence::kReading) {
      if (demanded_[shape_.Index(id)]) continue;
      link_.Promote(shape_.Index(id));
      SetDemanded(id);
      continue;
    }
    if (num_demanded_ >= kDemandAhead) return false;
    if (used_slots_ == shape_.num_slots) {
      const std::span<const ExpertId> evictable = Evictable();
      if (evictable.empty()) return false;
      Evict(driver_.ChooseVictim(evictable, id, now_));
    }
    StartLoad(id, ReadClass::kDemand);
    SetDemanded(id);
  }
  return true;
}

absl::Duration SimulatedCache::Compute(int32_t layer,
                                       std::span<const ExpertNeed> needs,
                                       absl::Duration row_time) {
  driver_.BeginLayer(layer, needs, now_);
  layer_ = layer;
  needs_ = needs;
  for (const ExpertNeed& need : needs) phase(need) = Phase::kPending;
  absl::Duration stall = absl::ZeroDuration();
  for (size_t left = needs.size(); left > 0;) {
    StartReads();
    const auto ready = std::ranges::find_if(needs, [&](const ExpertNeed& n) {
      return phase(n) == Phase::kPending &&
             driver_.residence({layer, n.expert}) == Residence::kResident;
    });
    if (ready == needs.end()) {
      const absl::Time start = now_;
      PORTOLAN_CHECK(ArriveNext(absl::InfiniteFuture()));
      stall += now_ - start;
      continue;
    }
    phase(*ready) = Phase::kComputing;
    AdvanceTo(now_ + row_time * ready->num_rows);
    phase(*ready) = Phase::kIdle;
    --left;
  }
  needs_ = {};
  driver_.EndLayer(layer, stall, now_);
  StartReads();
  return stall;
}

}  // namespace portolan
