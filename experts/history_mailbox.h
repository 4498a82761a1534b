#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <unordered_set>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "experts/history_record.h"
#include "runtime/base/mutex.h"

namespace portolan {

// Between the thread of a rank that learns and the one that talks to the
// coordinator: rows on their way out and rows that came in. Both sides are
// bounded and drop their oldest rows when full, for history may be lost and
// tokens may not wait for it.
//
// Thread-safe; nobody waits but TakeOutgoing().
class HistoryMailbox {
 public:
  struct Options {
    size_t max_outgoing_bytes = 16 << 20;
    size_t max_incoming_bytes = 64 << 20;
  };

  explicit HistoryMailbox(const Options& options) : options_(options) {}

  // -- The rank --

  void Send(HistoryRow row) ABSL_LOCKS_EXCLUDED(mu_);
  // Rows of others that were of use, by their ids, once for each time. They
  // travel with the next rows of the format; no more than so many are kept.
  static constexpr size_t kMaxUseful = 4096;
  void SendUseful(HistoryFormat format, std::span<const uint64_t> ids)
      ABSL_LOCKS_EXCLUDED(mu_);
  // At most `most` rows that came, oldest first.
  std::vector<HistoryRow> TakeIncoming(size_t most) ABSL_LOCKS_EXCLUDED(mu_);

  // -- The link --

  struct Outgoing {
    std::vector<HistoryRow> rows;
    std::vector<uint64_t> useful;  // of the rows' format
    uint64_t dropped = 0;          // since the last call
  };
  // Waits for a row, at most `timeout` or until Close(); then takes rows of one
  // format, at most `max_bytes` of them (at least one).
  Outgoing TakeOutgoing(absl::Duration timeout, size_t max_bytes)
      ABSL_LOCKS_EXCLUDED(mu_);
  // A row of the shared history. What this rank sent itself is left out: it
  // knows that already.
  void Deliver(HistoryRow row) ABSL_LOCKS_EXCLUDED(mu_);
  // The replica is whole; rows that come from now on are changes.
  void SetSynced() ABSL_LOCKS_EXCLUDED(mu_);
  // Wakes everybody who waits, now and later.
  void Close() ABSL_LOCKS_EXCLUDED(mu_);

  // Waits until the replica is whole. False at the timeout or after Close().
  bool WaitUntilSynced(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);

  struct Counts {
    uint64_t sent = 0;
    uint64_t received = 0;
    uint64_t dropped = 0;
  };
  Counts counts() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  static size_t BytesOf(const HistoryRow& row) {
    return row.key.size() + row.map.size();
  }
  void RememberOwn(const HistoryRow& row) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Options options_;

  mutable Mutex mu_;
  CondVar changed_;
  std::deque<HistoryRow> outgoing_ ABSL_GUARDED_BY(mu_);
  std::deque<HistoryRow> incoming_ ABSL_GUARDED_BY(mu_);
  std::map<HistoryFormat, std::vector<uint64_t>> useful_ ABSL_GUARDED_BY(mu_);
  size_t outgoing_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  size_t incoming_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  // Hashes of the last rows that this rank sent, oldest first.
  std::deque<uint64_t> own_order_ ABSL_GUARDED_BY(mu_);
  std::unordered_set<uint64_t> own_ ABSL_GUARDED_BY(mu_);
  uint64_t dropped_unreported_ ABSL_GUARDED_BY(mu_) = 0;
  Counts counts_ ABSL_GUARDED_BY(mu_);
  bool synced_ ABSL_GUARDED_BY(mu_) = false;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace portolan
