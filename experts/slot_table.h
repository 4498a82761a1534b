#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/base/ids.h"

namespace portolan {

// Which slot holds which expert, and how far it is. A slot goes kEmpty ->
// kReading -> kResident -> kEmpty; a read that fails goes back to kEmpty.
//
//   lease   compute reads the slot now; it cannot be evicted
//   wish    a layer in work still wants the expert; the same
//
// Each filling of a slot has a generation of its own, so that a holder can
// prove that its slot was not filled anew meanwhile. Pure, no thread: call it
// under the cache's lock.
class SlotTable {
 public:
  enum class State : uint8_t { kEmpty, kReading, kResident };

  // Experts are [num_layers, num_experts]; which of them are owned, the caller
  // knows.
  SlotTable(int32_t num_slots, int32_t num_layers, int32_t num_experts);

  int32_t num_slots() const { return static_cast<int32_t>(slots_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_resident() const { return num_resident_; }

  // The slot of an expert that is being read or resident.
  std::optional<int32_t> Find(ExpertId id) const;

  State state(int32_t slot) const { return at(slot).state; }
  ExpertId id(int32_t slot) const { return at(slot).id; }
  uint32_t generation(int32_t slot) const { return at(slot).generation; }

  // Takes a free slot for an absent expert: kReading. Requires num_free() > 0.
  int32_t StartReading(ExpertId id);
  void SetResident(int32_t slot);
  // Frees a slot that is not leased.
  void Clear(int32_t slot);

  // Requires kResident. Returns the generation.
  uint32_t Lease(int32_t slot);
  // Checks that the slot still holds what was leased.
  void Release(int32_t slot, uint32_t generation);

  void AddWish(ExpertId id) { ++wishes_[Index(id)]; }
  void DropWish(ExpertId id);

  // Replaces `ids` by the residents without lease or wish, by slot.
  void ListEvictable(std::vector<ExpertId>& ids) const;

 private:
  struct Slot {
    State state = State::kEmpty;
    ExpertId id;
    uint32_t generation = 0;
    int32_t leases = 0;
  };

  size_t Index(ExpertId id) const {
    return static_cast<size_t>(id.layer) * num_experts_ +
           static_cast<size_t>(id.expert);
  }
  const Slot& at(int32_t slot) const {
    return slots_[static_cast<size_t>(slot)];
  }
  Slot& at(int32_t slot) { return slots_[static_cast<size_t>(slot)]; }

  const size_t num_experts_;
  std::vector<Slot> slots_;
  std::vector<int32_t> free_;
  int32_t num_resident_ = 0;
  std::vector<int32_t> slot_of_;  // by Index(), -1: absent
  std::vector<int32_t> wishes_;   // by Index()
};

}  // namespace portolan
