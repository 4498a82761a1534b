#include "experts/slot_table.h"

#include "runtime/base/check.h"

namespace portolan {

SlotTable::SlotTable(int32_t num_slots, int32_t num_layers, int32_t num_experts)
    : num_experts_(static_cast<size_t>(num_experts)),
      slots_(static_cast<size_t>(num_slots)),
      slot_of_(static_cast<size_t>(num_layers) * num_experts_, -1),
      wishes_(slot_of_.size(), 0) {
  for (int32_t slot = num_slots; slot > 0; --slot) free_.push_back(slot - 1);
}

std::optional<int32_t> SlotTable::Find(ExpertId id) const {
  const int32_t slot = slot_of_[Index(id)];
  if (slot < 0) return std::nullopt;
  return slot;
}

int32_t SlotTable::StartReading(ExpertId id) {
  PORTOLAN_CHECK(!free_.empty() && slot_of_[Index(id)] < 0);
  const int32_t slot = free_.back();
  free_.pop_back();
  PORTOLAN_CHECK(at(slot).state == State::kEmpty);
  at(slot).state = State::kReading;
  at(slot).id = id;
  ++at(slot).generation;
  slot_of_[Index(id)] = slot;
  return slot;
}

void SlotTable::SetResident(int32_t slot) {
  PORTOLAN_CHECK(state(slot) == State::kReading);
  at(slot).state = State::kResident;
  ++num_resident_;
}

void SlotTable::Clear(int32_t slot) {
  PORTOLAN_CHECK(state(slot) != State::kEmpty && at(slot).leases == 0);
  if (state(slot) == State::kResident) --num_resident_;
  slot_of_[Index(id(slot))] = -1;
  at(slot).state = State::kEmpty;
  free_.push_back(slot);
}

uint32_t SlotTable::Lease(int32_t slot) {
  PORTOLAN_CHECK(state(slot) == State::kResident);
  ++at(slot).leases;
  return generation(slot);
}

void SlotTable::Release(int32_t slot, uint32_t generation) {
  PORTOLAN_CHECK(state(slot) == State::kResident && at(slot).leases > 0 &&
                 at(slot).generation == generation);
  --at(slot).leases;
}

void SlotTable::DropWish(ExpertId id) {
  PORTOLAN_CHECK(wishes_[Index(id)] > 0);
  --wishes_[Index(id)];
}

void SlotTable::ListEvictable(std::vector<ExpertId>& ids) const {
  ids.clear();
  for (const Slot& slot : slots_) {
    if (slot.state == State::kResident && slot.leases == 0 &&
        wishes_[Index(slot.id)] == 0) {
      ids.push_back(slot.id);
    }
  }
}

}  // namespace portolan
