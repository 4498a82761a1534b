#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace portolan {

// The expert maps that all ranks of one model share: a bounded set of rows that
// keeps what is different and useful, with a log of changes so that followers
// need not read it whole. Rows are opaque but for their key, a vector in half
// precision (expert_map.proto).
//
// Policy: no clock, file or thread. Thread-compatible. Memory: the rows, plus
// 4 bytes for each number of a key, plus the log.
class SharedMaps {
 public:
  struct Options {
    size_t max_rows = 4000;
    size_t max_bytes = 256 << 20;  // keys and maps
    size_t log_length = 4096;      // changes that followers may lag behind
  };
  struct Row {
    uint64_t id = 0;
    std::string key = {};
    std::string map = {};
    float usefulness = 0;
  };
  struct NewRow {
    std::string_view key;
    std::string_view map;
  };

  // `version`: where to begin; must exceed every version of an earlier life,
  // for a follower may know those.
  SharedMaps(const Options& options, uint64_t version)
      : options_(options), version_(version), log_begin_(version) {}

  // Puts back a row of an earlier life, before anything else. A row whose key
  // is not as long as those here is left out.
  void Restore(Row row);

  struct Change {
    size_t kept = 0;                   // rows taken; the others are known
    std::vector<uint64_t> added = {};  // ids; some may be removed as well
    std::vector<uint64_t> removed = {};
  };
  // Takes all rows or none. A row that is here already is left out; a row
  // beyond the capacity replaces, of the rows most similar to it, the one that
  // helped least. `useful_ids` count one hit each.
  // Errors: kInvalidArgument for a key that is no vector or of another length
  // than those kept, and for a map that is too large.
  absl::StatusOr<Change> Append(std::span<const NewRow> rows,
                                std::span<const uint64_t> useful_ids);

  // Gives up rows beyond the capacity, which may be less than in the life that
  // they were restored from: those that helped least, of equal ones the older.
  void Trim();

  // What a follower at `version` lacks. A snapshot if the log does not reach
  // back so far, or if it knows a version that is not ours.
  struct Delta {
    bool snapshot = false;
    std::vector<uint64_t> removed = {};
    std::vector<uint64_t> added = {};  // rising; all still here
  };
  Delta Since(uint64_t version) const;

  // nullptr if it is not (any more) here. Valid until the next change.
  const Row* Find(uint64_t id) const;

  uint64_t version() const { return version_; }
  size_t size() const { return rows_.size(); }
  size_t bytes() const { return bytes_; }
  const Options& options() const { return options_; }

 private:
  struct Entry {
    Row row;
    std::vector<float> direction;  // unit length
    uint64_t hash = 0;
  };
  struct LogEntry {
    uint64_t version = 0;  // that it led to
    uint64_t id = 0;
    bool added = false;
  };

  absl::StatusOr<std::vector<float>> ParseKey(std::string_view key) const;
  void Insert(Entry entry);
  void Remove(uint64_t id);
  void GiveUp(uint64_t id);
  bool IsFull(size_t more_rows, size_t more_bytes) const;
  uint64_t ChooseRedundant(const Entry& newcomer) const;
  void Log(uint64_t id, bool added);

  const Options options_;
  uint64_t version_;
  uint64_t log_begin_;  // versions from here on are in the log
  std::map<uint64_t, Entry> rows_;
  std::set<uint64_t> hashes_;  // of the rows' content
  std::deque<LogEntry> log_;
  size_t bytes_ = 0;
};

}  // namespace portolan
