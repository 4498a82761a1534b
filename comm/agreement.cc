#include "comm/agreement.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "comm/gather.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

std::string Name(const Transport& transport, Rank rank) {
  return absl::StrCat("rank ", ToIndex(rank), " on ", transport.host(rank));
}

absl::Status Disagreement(const Transport& transport, const AgreedField& field,
                          std::span<const uint64_t> values,
                          std::span<const Rank> odd) {
  std::string text;
  for (const Rank rank : odd) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", Name(transport, rank),
                    " has ", field.name, " 0x",
                    absl::Hex(values[static_cast<size_t>(ToIndex(rank))]));
  }
  for (size_t r = 0; r < values.size(); ++r) {
    const Rank rank{static_cast<int32_t>(r)};
    if (std::find(odd.begin(), odd.end(), rank) != odd.end()) continue;
    absl::StrAppend(&text, " where the others (", Name(transport, rank),
                    values.size() > odd.size() + 1 ? ", ..." : "", ") have 0x",
                    absl::Hex(values[r]), ": ", field.remedy);
    break;
  }
  return absl::FailedPreconditionError(text);
}

}  // namespace

std::vector<Rank> FindOddRanks(std::span<const uint64_t> values) {
  std::map<uint64_t, int> votes;
  for (const uint64_t value : values) ++votes[value];
  uint64_t right = values.empty() ? 0 : values[0];
  for (const uint64_t value : values) {
    if (votes[value] > votes[right]) right = value;
  }
  std::vector<Rank> odd;
  for (size_t rank = 0; rank < values.size(); ++rank) {
    if (values[rank] != right) odd.push_back(Rank(static_cast<int>(rank)));
  }
  return odd;
}

absl::Status Agree(Transport& transport, std::span<const AgreedField> fields,
                   absl::Duration timeout) {
  const auto world = static_cast<size_t>(transport.world_size());
  std::vector<uint64_t> mine;
  for (const AgreedField& field : fields) mine.push_back(field.value);
  PORTOLAN_ASSIGN_OR_RETURN(
      const MessageMemory memory,
      AllGather(transport, std::as_bytes(std::span<const uint64_t>(mine)),
                WaitContext{.phase = "start", .timeout = timeout}));
  const std::span<const uint64_t> all = memory.As<uint64_t>();

  std::vector<uint64_t> values(world);
  for (size_t i = 0; i < fields.size(); ++i) {
    for (size_t rank = 0; rank < world; ++rank) {
      values[rank] = all[rank * fields.size() + i];
    }
    const std::vector<Rank> odd = FindOddRanks(values);
    if (!odd.empty()) return Disagreement(transport, fields[i], values, odd);
  }
  return absl::OkStatus();
}

uint64_t Digest(std::span<const std::byte> bytes, uint64_t seed) {
  uint64_t hash = seed;
  for (const std::byte byte : bytes) {
    hash = (hash ^ static_cast<uint64_t>(byte)) * 0x100000001b3u;
  }
  return hash;
}

}  // namespace portolan
