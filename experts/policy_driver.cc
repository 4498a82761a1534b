#include "experts/policy_driver.h"

#include <utility>

#include "runtime/base/check.h"

namespace portolan {

PolicyDriver::PolicyDriver(PolicyShape shape,
                           std::unique_ptr<CachePolicy> policy)
    : shape_(std::move(shape)),
      policy_(std::move(policy)),
      residence_(shape_.num_ids(), Residence::kAbsent),
      status_(shape_.num_ids()) {
  PORTOLAN_CHECK(shape_.num_slots >= 2);
  scratch_.reserve(shape_.owned.size());
}

void PolicyDriver::BeginStep(int64_t num_tokens, absl::Time now) {
  ++metrics_.steps;
  metrics_.tokens += num_tokens;
  policy_->OnBeginStep(num_tokens, now);
}

void PolicyDriver::OnHints(int32_t layer, int32_t distance,
                           std::span<const float> scores, absl::Time now) {
  policy_->OnHints(layer, distance, scores, now);
}

void PolicyDriver::BeginLayer(int32_t layer, std::span<const ExpertNeed> needs,
                              absl::Time now) {
  policy_->OnBeginLayer(layer, needs, now);
  for (const ExpertNeed& need : needs) {
    const ExpertId id{layer, need.expert};
    policy_->OnAccess(id, Classify(id), need.num_rows, now);
  }
}

void PolicyDriver::ContinueLayer(int32_t layer,
                                 std::span<const ExpertNeed> needs,
                                 absl::Time now) {
  policy_->OnMoreNeeds(layer, needs, now);
  for (const ExpertNeed& need : needs) {
    const ExpertId id{layer, need.expert};
    if (status_[shape_.Index(id)].needed) continue;
    policy_->OnAccess(id, Classify(id), need.num_rows, now);
  }
}

AccessKind PolicyDriver::Classify(ExpertId id) {
  const size_t index = shape_.Index(id);
  Status& status = status_[index];
  status.needed = true;
  PassLayer(index);
  if (status.origin == Origin::kPrefetchUnused) {
    status.origin = Origin::kPrefetchUsed;
    metrics_.prefetch_used_bytes += shape_.expert_bytes;
    if (residence_[index] == Residence::kResident) {
      metrics_.prefetch_resident_bytes -= shape_.expert_bytes;
      ++metrics_.prefetches_used;
    } else {
      ++metrics_.prefetches_late;
    }
  }
  switch (residence_[index]) {
    case Residence::kResident:
      ++metrics_.hits;
      return AccessKind::kHit;
    case Residence::kReading:
      ++metrics_.late;
      return AccessKind::kLate;
    case Residence::kAbsent:
    case Residence::kUnreadable:
      break;
  }
  ++metrics_.misses;
  return AccessKind::kMiss;
}

void PolicyDriver::EndRound(absl::Duration stall) {
  metrics_.stall += stall;
  round_stall_ += stall;
}

void PolicyDriver::EndLayer(int32_t layer, absl::Duration stall,
                            absl::Time now) {
  EndRound(stall);
  for (int32_t expert = 0; expert < shape_.num_experts; ++expert) {
    const size_t index = shape_.Index({layer, expert});
    status_[index].needed = false;
    PassLayer(index);
  }
  policy_->OnEndLayer(layer, std::exchange(round_stall_, {}), now);
}

void PolicyDriver::PassLayer(size_t index) {
  if (std::exchange(status_[index].ahead, false)) --num_ahead_;
}

void PolicyDriver::OnLoadStarted(ExpertId id, ReadClass read_class) {
  const size_t index = shape_.Index(id);
  PORTOLAN_CHECK(residence_[index] == Residence::kAbsent ||
                 (residence_[index] == Residence::kUnreadable &&
                  read_class == ReadClass::kDemand));
  residence_[index] = Residence::kReading;
  if (read_class == ReadClass::kDemand) {
    status_[index].origin = Origin::kDemand;
    return;
  }
  PORTOLAN_CHECK(num_ahead_ < shape_.num_slots - 2);
  status_[index].origin = Origin::kPrefetchUnused;
  status_[index].ahead = true;
  ++num_ahead_;
}

void PolicyDriver::OnLoaded(ExpertId id, absl::Time now) {
  const size_t index = shape_.Index(id);
  PORTOLAN_CHECK(residence_[index] == Residence::kReading);
  residence_[index] = Residence::kResident;
  const Origin origin = status_[index].origin;
  if (origin == Origin::kDemand) metrics_.demand_bytes += shape_.expert_bytes;
  if (origin == Origin::kPrefetchUnused) {
    metrics_.prefetch_resident_bytes += shape_.expert_bytes;
  }
  policy_->OnLoaded(id,
                    origin == Origin::kPrefetchUnused ? ReadClass::kSpeculative
                                                      : ReadClass::kDemand,
                    now);
}

void PolicyDriver::OnLoadFailed(ExpertId id) {
  const size_t index = shape_.Index(id);
  PORTOLAN_CHECK(residence_[index] == Residence::kReading);
  residence_[index] = Residence::kUnreadable;
  if (status_[index].origin == Origin::kPrefetchUsed) {
    metrics_.prefetch_used_bytes -= shape_.expert_bytes;
  }
  status_[index].origin = Origin::kDemand;
  PassLayer(index);
  policy_->OnLoadFailed(id);
}

void PolicyDriver::OnEvicted(ExpertId id, absl::Time now) {
  const size_t index = shape_.Index(id);
  PORTOLAN_CHECK(residence_[index] == Residence::kResident);
  residence_[index] = Residence::kAbsent;
  if (status_[index].origin == Origin::kPrefetchUnused) {
    metrics_.prefetch_resident_bytes -= shape_.expert_bytes;
    metrics_.prefetch_wasted_bytes += shape_.expert_bytes;
    ++metrics_.prefetches_wasted;
  }
  status_[index].origin = Origin::kDemand;
  PassLayer(index);
  policy_->OnEvicted(id, now);
}

template <typename Keep>
std::span<const ExpertId> PolicyDriver::Filter(std::span<const ExpertId> ids,
                                               Keep keep) {
  scratch_.clear();
  for (const ExpertId id : ids) {
    if (keep(status_[shape_.Index(id)])) scratch_.push_back(id);
  }
  return scratch_;
}

ExpertId PolicyDriver::ChooseVictim(std::span<const ExpertId> evictable,
                                    ExpertId incoming, absl::Time now) {
  PORTOLAN_CHECK(!evictable.empty());
  std::span<const ExpertId> choice =
      Filter(evictable, [](const Status& status) { return !status.ahead; });
  if (choice.empty()) choice = evictable;
  const size_t victim = policy_->ChooseVictim(choice, incoming, now);
  PORTOLAN_CHECK(victim < choice.size());
  return choice[victim];
}

std::optional<Prefetch> PolicyDriver::NextPrefetch(
    std::span<const ExpertId> evictable, bool has_free_slot,
    const LinkState& link, absl::Time now) {
  if (num_ahead_ >= shape_.num_slots - 2) return std::nullopt;
  const std::span<const ExpertId> choice = Filter(
      evictable,
      [](const Status& status) { return !status.ahead && !status.needed; });
  if (choice.empty() && !has_free_slot) return std::nullopt;
  const std::optional<Prefetch> prefetch =
      policy_->NextPrefetch({.now = now,
                             .link = link,
                             .residence = residence_,
                             .evictable = choice,
                             .has_free_slot = has_free_slot});
  if (prefetch) {
    PORTOLAN_CHECK(residence(prefetch->id) == Residence::kAbsent);
    PORTOLAN_CHECK(has_free_slot || prefetch->victim.has_value());
  }
  return prefetch;
}

}  // namespace portolan
