#pragma once

#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "runtime/base/mutex.h"

namespace portolan {

// An event that one thread waits for and any thread sets. Waits by the
// monotonic clock, which a condition variable's deadline is not: a clock that
// is set back would delay every timer. Thread-safe.
class WakeEvent {
 public:
  WakeEvent();
  ~WakeEvent();
  WakeEvent(const WakeEvent&) = delete;
  WakeEvent& operator=(const WakeEvent&) = delete;

  void Set();
  // Returns when the event was set since the last call, or after `timeout`.
  void Wait(absl::Duration timeout);

 private:
  const int fd_;
};

// What other threads leave for the thread that owns something. How much there
// may be is up to the senders: each of ours has at most a few items in it.
//
// Thread-safe; Take() on one thread only.
template <typename Item>
class Mailbox {
 public:
  // After Close() the item is dropped.
  void Post(Item item) ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(mu_);
      if (closed_) return;
      items_.push_back(std::move(item));
      if (items_.size() > 1) return;  // the reader knows already
    }
    event_.Set();
  }

  // Take() gives what is there and then returns false.
  void Close() ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(mu_);
      closed_ = true;
    }
    event_.Set();
  }

  // Waits until there is something, for at most `timeout`, and moves all of it
  // to `items`, in the order of Post(). True with no items: the timeout, or a
  // wake-up left of what was taken already. False: closed, and nothing is left.
  bool Take(absl::Duration timeout, std::vector<Item>& items)
      ABSL_LOCKS_EXCLUDED(mu_) {
    items.clear();
    if (TryTake(items)) return true;
    if (closed()) return false;
    event_.Wait(timeout);
    return TryTake(items) || !closed();
  }

 private:
  bool TryTake(std::vector<Item>& items) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    items.swap(items_);
    return !items.empty();
  }
  bool closed() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    return closed_;
  }

  WakeEvent event_;
  Mutex mu_;
  std::vector<Item> items_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace portolan
