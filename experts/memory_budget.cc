#include "experts/memory_budget.h"

#include <algorithm>
#include <optional>

#include "absl/numeric/int128.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/units.h"

namespace portolan {
namespace {

absl::string_view View(std::string_view text) {
  return {text.data(), text.size()};
}

// Exact, as floating point is not: 29 % of 100 are 29.
struct Share {
  uint64_t part = 0;
  uint64_t whole = 100;
};

// "12.5", above 0 and up to 100; nullopt if it is something else.
std::optional<Share> ParsePercent(std::string_view text) {
  constexpr size_t kMostDigits = 15;
  Share share;
  bool fraction = false;
  size_t digits = 0;
  for (const char c : text) {
    if (c == '.' && !fraction) {
      fraction = true;
      continue;
    }
    if (c < '0' || c > '9' || ++digits > kMostDigits) return std::nullopt;
    share.part = 10 * share.part + static_cast<uint64_t>(c - '0');
    if (fraction) share.whole *= 10;
  }
  if (share.part == 0 || share.part > share.whole) return std::nullopt;
  return share;
}

absl::Status BadSize(std::string_view text) {
  return absl::InvalidArgumentError(absl::StrCat(
      "--expert-memory: \"", View(text),
      "\" is neither \"all\", a percentage above 0 and up to 100 (25%) nor a "
      "size (512MiB)"));
}

absl::StatusOr<int64_t> SlotsOf(std::string_view text, int64_t owned_experts,
                                int64_t slot_bytes) {
  if (text == "all") return owned_experts;
  if (text.ends_with('%')) {
    const std::optional<Share> share =
        ParsePercent(text.substr(0, text.size() - 1));
    if (!share) return BadSize(text);
    return static_cast<int64_t>(absl::uint128(share->part) *
                                static_cast<uint64_t>(owned_experts) /
                                share->whole);
  }
  const absl::StatusOr<int64_t> bytes = ParseBytes(text);
  if (!bytes.ok() || *bytes < 0) return BadSize(text);
  return *bytes / slot_bytes;
}

}  // namespace

int64_t MinExpertSlots(int64_t owned_experts) {
  return std::min<int64_t>(2, owned_experts);
}

absl::StatusOr<MemoryBudget> PlanExpertMemory(std::string_view text,
                                              int64_t owned_experts,
                                              int64_t slot_bytes) {
  PORTOLAN_CHECK(owned_experts >= 0 && slot_bytes > 0);
  PORTOLAN_ASSIGN_OR_RETURN(const int64_t slots,
                            SlotsOf(text, owned_experts, slot_bytes));
  const int64_t minimum = MinExpertSlots(owned_experts);
  if (slots < minimum) {
    return absl::InvalidArgumentError(
        absl::StrCat("--expert-memory ", View(text), " holds ", slots,
                     " of the rank's ", owned_experts, " experts (",
                     FormatBytes(slot_bytes), " each); at least ", minimum,
                     " are needed: write ", minimum * slot_bytes, " (",
                     FormatBytes(minimum * slot_bytes), ") or more"));
  }
  return MemoryBudget{.num_slots = std::min(slots, owned_experts),
                      .slot_bytes = slot_bytes,
                      .owned_slots = owned_experts};
}

}  // namespace portolan
