#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"

namespace portolan {

// What --expert-memory means for one rank.
struct MemoryBudget {
  int64_t num_slots = 0;
  int64_t slot_bytes = 0;   // of one expert, padding included
  int64_t owned_slots = 0;  // experts that the rank owns

  int64_t bytes() const { return num_slots * slot_bytes; }
  bool resident() const { return num_slots == owned_slots; }
};

// The fewest slots a rank can run with: one expert is computed while the next
// one arrives. A rank that owns a single expert (or none) needs no more slots.
int64_t MinExpertSlots(int64_t owned_experts);

// Reads "all", a share of the rank's own experts ("25%", "12.5%") or bytes
// ("512MiB"). Slots are whole: a budget is rounded down to them, and never
// larger than what the rank owns.
// Errors: kInvalidArgument naming --expert-memory and what to write; if the
// budget holds fewer than MinExpertSlots(), that minimum.
absl::StatusOr<MemoryBudget> PlanExpertMemory(std::string_view text,
                                              int64_t owned_experts,
                                              int64_t slot_bytes);

}  // namespace portolan
