#include "cluster/coordinator/shared_maps.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cluster/coordinator/validation.h"
#include "runtime/base/check.h"
#include "runtime/base/fp16.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr size_t kMaxKeyBytes = 128 << 10;
constexpr size_t kMaxMapBytes = 1 << 20;
// Of how many most similar rows the least useful one goes.
constexpr size_t kRedundant = 8;
// What one more row takes off the usefulness of all: old merit fades.
constexpr float kFading = 0.999f;

absl::Status Invalid(std::string_view field, const std::string& what) {
  return FieldError(absl::StatusCode::kInvalidArgument, field, what);
}

uint64_t HashOf(std::string_view key, std::string_view map) {
  // Lives in memory only, so that a hash seeded by the process will do.
  return absl::HashOf(key, map);
}

float Dot(std::span<const float> a, std::span<const float> b) {
  // Four sums, so that the loop becomes vector code.
  std::array<float, 4> sums = {};
  const size_t whole = a.size() / 4 * 4;
  for (size_t i = 0; i < whole; i += 4) {
    for (size_t j = 0; j < 4; ++j) sums[j] += a[i + j] * b[i + j];
  }
  float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (size_t i = whole; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

absl::StatusOr<std::vector<float>> SharedMaps::ParseKey(
    std::string_view key) const {
  if (key.empty() || key.size() % sizeof(Fp16) != 0 ||
      key.size() > kMaxKeyBytes) {
    return Invalid("rows.key", absl::StrCat("has ", key.size(),
                                            " bytes; it must be an even "
                                            "number, 2 .. ",
                                            kMaxKeyBytes));
  }
  std::vector<float> direction(key.size() / sizeof(Fp16));
  double square = 0;
  for (size_t i = 0; i < direction.size(); ++i) {
    Fp16 half;
    std::memcpy(&half, key.data() + i * sizeof(half), sizeof(half));
    direction[i] = ToFloat(half);
    square += double{direction[i]} * direction[i];
  }
  if (!std::isfinite(square)) {
    return Invalid("rows.key", "has a number that is not finite");
  }
  if (!rows_.empty() &&
      direction.size() != rows_.begin()->second.direction.size()) {
    return Invalid("rows.key",
                   absl::StrCat("has ", direction.size(),
                                " numbers; the rows of this store have ",
                                rows_.begin()->second.direction.size()));
  }
  const auto scale = static_cast<float>(square > 0 ? 1 / std::sqrt(square) : 0);
  for (float& value : direction) value *= scale;
  return direction;
}

void SharedMaps::Restore(Row row) {
  absl::StatusOr<std::vector<float>> direction = ParseKey(row.key);
  if (!direction.ok()) return;  // of a length that the first row has not
  const uint64_t hash = HashOf(row.key, row.map);
  version_ = std::max(version_, row.id + 1);
  log_begin_ = version_;
  Insert({std::move(row), *std::move(direction), hash});
}

absl::StatusOr<SharedMaps::Change> SharedMaps::Append(
    std::span<const NewRow> rows, std::span<const uint64_t> useful_ids) {
  std::vector<Entry> newcomers;
  for (const NewRow& row : rows) {
    PORTOLAN_ASSIGN_OR_RETURN(std::vector<float> direction, ParseKey(row.key));
    if (row.map.size() > kMaxMapBytes) {
      return Invalid("rows.map",
                     absl::StrCat("has ", row.map.size(), " bytes; at most ",
                                  kMaxMapBytes, " are taken"));
    }
    if (!newcomers.empty() &&
        direction.size() != newcomers.front().direction.size()) {
      return Invalid("rows.key", "has not the length of the keys before it");
    }
    newcomers.push_back(
        {{.key = std::string(row.key), .map = std::string(row.map)},
         std::move(direction),
         HashOf(row.key, row.map)});
  }
  for (const uint64_t id : useful_ids) {
    const auto found = rows_.find(id);
    if (found != rows_.end()) found->second.row.usefulness += 1;
  }
  Change change;
  for (Entry& newcomer : newcomers) {
    if (hashes_.contains(newcomer.hash)) continue;
    ++change.kept;
    const size_t size = newcomer.row.key.size() + newcomer.row.map.size();
    while (IsFull(1, size)) {
      const uint64_t victim = ChooseRedundant(newcomer);
      GiveUp(victim);
      change.removed.push_back(victim);
    }
    for (auto& [id, entry] : rows_) entry.row.usefulness *= kFading;
    newcomer.row.id = ++version_;
    change.added.push_back(newcomer.row.id);
    Log(newcomer.row.id, /*added=*/true);
    Insert(std::move(newcomer));
  }
  return change;
}

void SharedMaps::Trim() {
  std::vector<std::pair<float, uint64_t>> by_use;
  by_use.reserve(rows_.size());
  for (const auto& [id, entry] : rows_) {
    by_use.emplace_back(entry.row.usefulness, id);
  }
  std::ranges::sort(by_use);
  for (auto next = by_use.begin(); IsFull(0, 0); ++next) GiveUp(next->second);
}

// Whether so much more does not fit beside what is here.
bool SharedMaps::IsFull(size_t more_rows, size_t more_bytes) const {
  return !rows_.empty() && (rows_.size() + more_rows > options_.max_rows ||
                            bytes_ + more_bytes > options_.max_bytes);
}

void SharedMaps::Insert(Entry entry) {
  bytes_ += entry.row.key.size() + entry.row.map.size();
  hashes_.insert(entry.hash);
  rows_.insert_or_assign(entry.row.id, std::move(entry));
}

void SharedMaps::Remove(uint64_t id) {
  const auto found = rows_.find(id);
  PORTOLAN_CHECK(found != rows_.end());
  const Entry& entry = found->second;
  bytes_ -= entry.row.key.size() + entry.row.map.size();
  hashes_.erase(entry.hash);
  rows_.erase(found);
}

void SharedMaps::GiveUp(uint64_t id) {
  Remove(id);
  ++version_;
  Log(id, /*added=*/false);
}

// Ties go to the older row.
uint64_t SharedMaps::ChooseRedundant(const Entry& newcomer) const {
  std::vector<std::pair<float, uint64_t>> similar;
  similar.reserve(rows_.size());
  for (const auto& [id, entry] : rows_) {
    similar.emplace_back(-Dot(newcomer.direction, entry.direction), id);
  }
  const auto end = similar.begin() + static_cast<std::ptrdiff_t>(
                                         std::min(kRedundant, similar.size()));
  std::partial_sort(similar.begin(), end, similar.end());
  return std::min_element(similar.begin(), end,
                          [this](const auto& a, const auto& b) {
                            return rows_.at(a.second).row.usefulness <
                                   rows_.at(b.second).row.usefulness;
                          })
      ->second;
}

void SharedMaps::Log(uint64_t id, bool added) {
  log_.push_back({version_, id, added});
  while (log_.size() > options_.log_length) {
    log_begin_ = log_.front().version;
    log_.pop_front();
  }
}

SharedMaps::Delta SharedMaps::Since(uint64_t version) const {
  Delta delta;
  delta.snapshot = version < log_begin_ || version > version_;
  if (delta.snapshot) {
    for (const auto& [id, entry] : rows_) delta.added.push_back(id);
    return delta;
  }
  const auto first =
      std::upper_bound(log_.begin(), log_.end(), version,
                       [](uint64_t value, const LogEntry& entry) {
                         return value < entry.version;
                       });
  for (auto it = first; it != log_.end(); ++it) {
    if (!it->added) {
      // Rows that came and went meanwhile are nobody's business.
      if (it->id <= version) delta.removed.push_back(it->id);
    } else if (rows_.contains(it->id)) {
      delta.added.push_back(it->id);
    }
  }
  return delta;
}

const SharedMaps::Row* SharedMaps::Find(uint64_t id) const {
  const auto found = rows_.find(id);
  return found == rows_.end() ? nullptr : &found->second.row;
}

}  // namespace portolan
