#include "experts/history_mailbox.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/time/clock.h"
#include "experts/hash64.h"

namespace portolan {
namespace {

constexpr size_t kOwnRows = 16384;

uint64_t HashOf(const HistoryRow& row) {
  return Hash64(std::as_bytes(std::span(row.key))) * 31 +
         Hash64(std::as_bytes(std::span(row.map)));
}

}  // namespace

void HistoryMailbox::RememberOwn(const HistoryRow& row) {
  const uint64_t hash = HashOf(row);
  if (!own_.insert(hash).second) return;
  own_order_.push_back(hash);
  if (own_order_.size() <= kOwnRows) return;
  own_.erase(own_order_.front());
  own_order_.pop_front();
}

void HistoryMailbox::Send(HistoryRow row) {
  MutexLock lock(mu_);
  RememberOwn(row);
  outgoing_bytes_ += BytesOf(row);
  outgoing_.push_back(std::move(row));
  ++counts_.sent;
  while (outgoing_bytes_ > options_.max_outgoing_bytes) {
    outgoing_bytes_ -= BytesOf(outgoing_.front());
    outgoing_.pop_front();
    ++counts_.dropped;
    ++dropped_unreported_;
  }
  changed_.NotifyAll();
}

void HistoryMailbox::SendUseful(HistoryFormat format,
                                std::span<const uint64_t> ids) {
  if (ids.empty()) return;
  MutexLock lock(mu_);
  std::vector<uint64_t>& kept = useful_[format];
  const size_t room = kMaxUseful - std::min(kMaxUseful, kept.size());
  const auto taken = ids.first(std::min(room, ids.size()));
  kept.insert(kept.end(), taken.begin(), taken.end());
}

std::vector<HistoryRow> HistoryMailbox::TakeIncoming(size_t most) {
  std::vector<HistoryRow> rows;
  MutexLock lock(mu_);
  while (rows.size() < most && !incoming_.empty()) {
    incoming_bytes_ -= BytesOf(incoming_.front());
    rows.push_back(std::move(incoming_.front()));
    incoming_.pop_front();
  }
  return rows;
}

HistoryMailbox::Outgoing HistoryMailbox::TakeOutgoing(absl::Duration timeout,
                                                      size_t max_bytes) {
  const absl::Time deadline = absl::Now() + timeout;
  Outgoing out;
  MutexLock lock(mu_);
  while (outgoing_.empty() && !closed_ && absl::Now() < deadline) {
    changed_.WaitFor(mu_, deadline - absl::Now());
  }
  size_t bytes = 0;
  while (!outgoing_.empty()) {
    HistoryRow& next = outgoing_.front();
    const bool fits =
        out.rows.empty() || (next.format == out.rows.front().format &&
                             bytes + BytesOf(next) <= max_bytes);
    if (!fits) break;
    bytes += BytesOf(next);
    outgoing_bytes_ -= BytesOf(next);
    out.rows.push_back(std::move(next));
    outgoing_.pop_front();
  }
  if (!out.rows.empty()) {
    out.dropped = std::exchange(dropped_unreported_, 0);
    out.useful = std::exchange(useful_[out.rows.front().format], {});
  }
  return out;
}

void HistoryMailbox::Deliver(HistoryRow row) {
  const uint64_t hash = HashOf(row);
  MutexLock lock(mu_);
  if (own_.contains(hash)) return;
  ++counts_.received;
  incoming_bytes_ += BytesOf(row);
  incoming_.push_back(std::move(row));
  while (incoming_bytes_ > options_.max_incoming_bytes) {
    incoming_bytes_ -= BytesOf(incoming_.front());
    incoming_.pop_front();
    ++counts_.dropped;
  }
}

void HistoryMailbox::SetSynced() {
  MutexLock lock(mu_);
  synced_ = true;
  changed_.NotifyAll();
}

void HistoryMailbox::Close() {
  MutexLock lock(mu_);
  closed_ = true;
  changed_.NotifyAll();
}

bool HistoryMailbox::WaitUntilSynced(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(mu_);
  while (!synced_ && !closed_ && absl::Now() < deadline) {
    changed_.WaitFor(mu_, deadline - absl::Now());
  }
  return synced_;
}

HistoryMailbox::Counts HistoryMailbox::counts() const {
  MutexLock lock(mu_);
  return counts_;
}

}  // namespace portolan
