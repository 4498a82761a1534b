#pragma once

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace portolan {

// std::mutex with the annotations that clang's -Wthread-safety reads.
//
// Not absl::Mutex: Debian's Abseil is built without ThreadSanitizer, which then
// reports every section under an absl::Mutex as a race.
class ABSL_LOCKABLE Mutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mu_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mu_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mu_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex& mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) {
    mu_.Lock();
  }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mu_.Unlock(); }

  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mu_;
};

class CondVar {
 public:
  // Waits for a notification, or spuriously. Call in a loop over the condition.
  void Wait(Mutex& mu) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }

  // As Wait(), for at most `timeout`, by a clock that nobody sets.
  void WaitFor(Mutex& mu, absl::Duration timeout)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    // What a deadline can hold; callers loop.
    timeout = std::clamp(timeout, absl::ZeroDuration(), absl::Hours(24));
#ifdef __SANITIZE_THREAD__
    // gcc's TSan does not know pthread_cond_clockwait, which a relative wait
    // calls: it would miss that the mutex is given up meanwhile.
    cv_.wait_until(lock, absl::ToChronoTime(absl::Now() + timeout));
#else
    cv_.wait_for(lock, absl::ToChronoNanoseconds(timeout));
#endif
    lock.release();
  }

  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace portolan
