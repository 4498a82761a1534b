#include "comm/agreement.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "comm/gather.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr char kOfAllRanks[] = "portolan.of_all_ranks";

std::string Name(const Transport& transport, Rank rank) {
  return absl::StrCat("rank ", ToIndex(rank), " on ", transport.host(rank));
}

// A text as it travels.
struct TextRecord {
  uint32_t size = 0;
  std::array<char, 252> text = {};
};

TextRecord ToRecord(const std::string& text) {
  TextRecord record;
  std::string cut = text;
  if (cut.size() > record.text.size()) {
    constexpr absl::string_view kMore = "...";
    size_t size = record.text.size() - kMore.size();
    // Never within a character of UTF-8.
    while (size > 0 && (static_cast<uint8_t>(cut[size]) & 0xc0) == 0x80) --size;
    cut = absl::StrCat(cut.substr(0, size), kMore);
  }
  record.size = static_cast<uint32_t>(cut.size());
  std::copy(cut.begin(), cut.end(), record.text.begin());
  return record;
}

// The text of every rank. Collective.
absl::StatusOr<std::vector<std::string>> GatherTexts(
    Transport& transport, const std::string& mine, const WaitContext& context) {
  const TextRecord record = ToRecord(mine);
  PORTOLAN_ASSIGN_OR_RETURN(
      const MessageMemory memory,
      AllGather(transport, std::as_bytes(std::span(&record, 1)), context));
  std::vector<std::string> texts;
  for (const TextRecord& one : memory.As<TextRecord>().first(
           static_cast<size_t>(transport.world_size()))) {
    texts.emplace_back(one.text.data(),
                       std::min<size_t>(one.size, one.text.size()));
  }
  return texts;
}

// The lowest rank that is not odd.
Rank FirstRight(std::span<const Rank> odd) {
  size_t rank = 0;
  while (rank < odd.size() && odd[rank] == Rank(static_cast<int32_t>(rank))) {
    ++rank;
  }
  return Rank(static_cast<int32_t>(rank));
}

absl::Status Disagreement(const Transport& transport, const AgreedField& field,
                          std::span<const std::string> texts,
                          std::span<const Rank> odd) {
  const auto text_of = [&](Rank rank) -> const std::string& {
    return texts[static_cast<size_t>(ToIndex(rank))];
  };
  const Rank right = FirstRight(odd);
  // Texts that do not tell them apart only say what both have.
  const bool tells = std::ranges::none_of(odd, [&](Rank rank) {
    return text_of(rank).empty() || text_of(rank) == text_of(right);
  });
  std::string text;
  for (const Rank rank : odd) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", Name(transport, rank));
    if (tells) absl::StrAppend(&text, " has ", field.name, " ", text_of(rank));
  }
  const std::string others =
      absl::StrCat("the others (", Name(transport, right),
                   texts.size() > odd.size() + 1 ? ", ..." : "", ")");
  if (tells) {
    absl::StrAppend(&text, " where ", others, " have ", text_of(right));
  } else {
    absl::StrAppend(&text, odd.size() == 1 ? " has" : " have", " another ",
                    field.name, " than ", others);
    if (!text_of(right).empty()) {
      absl::StrAppend(&text, ", though both say ", text_of(right));
    }
  }
  return OfAllRanks(
      absl::FailedPreconditionError(absl::StrCat(text, ": ", field.remedy)));
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
  const WaitContext context{.phase = "start", .timeout = timeout};
  std::vector<uint64_t> mine;
  for (const AgreedField& field : fields) mine.push_back(field.value);
  PORTOLAN_ASSIGN_OR_RETURN(
      const MessageMemory memory,
      AllGather(transport, std::as_bytes(std::span<const uint64_t>(mine)),
                context));
  const std::span<const uint64_t> all = memory.As<uint64_t>();

  std::vector<uint64_t> values(world);
  for (size_t i = 0; i < fields.size(); ++i) {
    for (size_t rank = 0; rank < world; ++rank) {
      values[rank] = all[rank * fields.size() + i];
    }
    const std::vector<Rank> odd = FindOddRanks(values);
    if (odd.empty()) continue;
    PORTOLAN_ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                              GatherTexts(transport, fields[i].text, context));
    LeaveTogether(transport, context);
    return Disagreement(transport, fields[i], texts, odd);
  }
  return absl::OkStatus();
}

absl::Status OfAllRanks(absl::Status status) {
  if (!status.ok()) status.SetPayload(kOfAllRanks, absl::Cord("yes"));
  return status;
}

bool IsOfAllRanks(const absl::Status& status) {
  return status.GetPayload(kOfAllRanks).has_value();
}

uint64_t Digest(std::span<const std::byte> bytes, uint64_t seed) {
  uint64_t hash = seed;
  for (const std::byte byte : bytes) {
    hash = (hash ^ static_cast<uint64_t>(byte)) * 0x100000001b3u;
  }
  return hash;
}

}  // namespace portolan
