#include "experts/load_queue.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"

namespace portolan {

LoadQueue::LoadQueue(const Limits& limits)
    : limits_(limits), loads_(static_cast<size_t>(limits.num_slots)) {
  demand_.reserve(loads_.size());
  speculative_.reserve(loads_.size());
  for (int32_t i = limits.num_staging; i > 0; --i) {
    free_staging_.push_back(i - 1);
  }
}

void LoadQueue::Add(int32_t slot, ExpertId id, ReadClass read_class,
                    int32_t num_chunks) {
  PORTOLAN_CHECK(!load(slot).active && num_chunks > 0);
  load(slot) = {.active = true,
                .id = id,
                .read_class = read_class,
                .num_chunks = num_chunks,
                .status = absl::OkStatus()};
  auto& queue = read_class == ReadClass::kDemand ? demand_ : speculative_;
  queue.push_back(slot);
  ++num_loads_;
  if (read_class == ReadClass::kSpeculative) ++num_speculative_;
}

bool LoadQueue::Promote(int32_t slot) {
  Load& promoted = load(slot);
  PORTOLAN_CHECK(promoted.active);
  if (promoted.read_class == ReadClass::kDemand) return false;
  promoted.read_class = ReadClass::kDemand;
  spec_under_way_ -= promoted.under_way;
  demand_under_way_ += promoted.under_way;
  if (std::erase(speculative_, slot) > 0) demand_.insert(demand_.begin(), slot);
  --num_speculative_;
  return true;
}

std::optional<LoadQueue::Chunk> LoadQueue::Next() {
  if (under_way() >= limits_.depth) return std::nullopt;
  if (std::optional<Chunk> chunk = NextOf(demand_)) return chunk;
  // Demand that waits for staging lets speculative loads end, which hold it.
  if (demand_under_way_ > 0 || spec_under_way_ >= limits_.speculative_depth) {
    return std::nullopt;
  }
  return NextOf(speculative_);
}

std::optional<LoadQueue::Chunk> LoadQueue::NextOf(std::vector<int32_t>& queue) {
  // Usually the first; one that was failed and waits for staging lets others
  // pass that have theirs.
  for (auto slot = queue.begin(); slot != queue.end(); ++slot) {
    Load& next = load(*slot);
    if (!HaveStaging(next)) continue;
    const Chunk chunk{.slot = *slot,
                      .chunk = next.next_chunk++,
                      .id = next.id,
                      .read_class = next.read_class,
                      .staging = next.staging};
    ++next.under_way;
    ++UnderWay(next.read_class);
    if (next.next_chunk == next.num_chunks) queue.erase(slot);
    return chunk;
  }
  return std::nullopt;
}

bool LoadQueue::HaveStaging(Load& load) {
  if (limits_.num_staging == 0 || load.staging >= 0) return true;
  if (free_staging_.empty()) return false;
  load.staging = free_staging_.back();
  free_staging_.pop_back();
  return true;
}

LoadQueue::Outcome LoadQueue::OnChunkDone(int32_t slot, absl::Status& status) {
  Load& ended = load(slot);
  PORTOLAN_CHECK(ended.active && ended.under_way > 0);
  --ended.under_way;
  --UnderWay(ended.read_class);
  ++ended.num_done;
  if (!status.ok()) {
    ended.status.Update(status);
    Dequeue(slot);
  }
  if (ended.under_way > 0) return Outcome::kUnderWay;
  if (!ended.status.ok()) return EndAttempt(slot, status);
  return ended.num_done == ended.num_chunks ? Outcome::kLanded
                                            : Outcome::kUnderWay;
}

LoadQueue::Outcome LoadQueue::EndAttempt(int32_t slot, absl::Status& status) {
  Load& failed = load(slot);
  if (failed.read_class == ReadClass::kDemand &&
      absl::IsUnavailable(failed.status) &&
      failed.attempts < limits_.max_attempts) {
    ++failed.attempts;
    ++num_retries_;
    failed.next_chunk = 0;
    failed.num_done = 0;
    failed.status = absl::OkStatus();
    demand_.insert(demand_.begin(), slot);
    return Outcome::kUnderWay;
  }
  status = std::move(failed.status);
  Remove(slot);
  return Outcome::kFailed;
}

void LoadQueue::Remove(int32_t slot) {
  Load& ended = load(slot);
  PORTOLAN_CHECK(ended.active && ended.under_way == 0);
  if (ended.staging >= 0) free_staging_.push_back(ended.staging);
  ended.active = false;
  ended.staging = -1;
  --num_loads_;
  if (ended.read_class == ReadClass::kSpeculative) --num_speculative_;
}

bool LoadQueue::CanSpeculate() const {
  return demand_.empty() && speculative_.empty() && demand_under_way_ == 0 &&
         spec_under_way_ < limits_.speculative_depth &&
         under_way() < limits_.depth &&
         (limits_.num_staging == 0 || !free_staging_.empty());
}

void LoadQueue::Dequeue(int32_t slot) {
  std::erase(demand_, slot);
  std::erase(speculative_, slot);
}

}  // namespace portolan
