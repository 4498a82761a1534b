#pragma once

#include <deque>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cluster/coordinator/mailbox.h"
#include "cluster/coordinator/request_store.h"

namespace portolan {

// The thread that owns the store. What is posted runs in order; everything
// that waits goes into one transaction (group commit), with one fsync for all
// if any of it must be durable.
//
// If the transaction fails, each piece runs again in one of its own, so that
// only the piece that cannot be done fails. Tokens of running requests are
// never given up: what says `never_fails` is tried again until the disk has
// room, and all of its kind waits behind it, in order. Meanwhile the store is
// stuck: reads are served, and see what is committed; other writes fail at
// once, with kResourceExhausted, or kUnavailable where it is not for room.
// What is neither a matter of room nor of a lock, and does not pass within
// kMaxTries tries, will not pass: the store is broken, and whoever runs it is
// told once, so that it ends instead of standing still.
//
// Thread-safe. `done` and `work` run on the store's thread; `work` may run more
// than once.
class StoreThread {
 public:
  enum class Durability {
    kRead,     // nothing is written
    kProcess,  // survives the death of the process
    kDisk,     // and a power cut
  };
  struct Job {
    Durability durability = Durability::kProcess;
    bool never_fails = false;
    absl::AnyInvocable<absl::Status(RequestStore&)> work;
    absl::AnyInvocable<void(absl::Status)> done;
  };

  static constexpr int kMaxTries = 10;

  // `housekeeping` runs once a minute, and again at once if it returns true:
  // there is more of it. `on_broken` gets the error.
  StoreThread(
      std::unique_ptr<RequestStore> store,
      absl::AnyInvocable<bool(RequestStore&)> housekeeping,
      absl::AnyInvocable<void(const absl::Status&)> on_broken =
          [](const absl::Status&) {},
      absl::Duration try_again = absl::Milliseconds(500));
  // As Stop().
  ~StoreThread();

  void Post(Job job) { jobs_.Post(std::move(job)); }

  // Does what was posted, then ends the thread. What waits for the disk is not
  // waited for.
  void Stop();

 private:
  void Loop();
  void RunAll(std::vector<Job>& jobs);
  absl::Status RunTogether(std::span<Job> jobs);
  void RunAlone(Job job);
  absl::Status Transact(Job& job);
  void TryStuck();
  void CountFailure(const absl::Status& status);
  void EndStuck();

  const std::unique_ptr<RequestStore> store_;
  absl::AnyInvocable<bool(RequestStore&)> housekeeping_;
  absl::AnyInvocable<void(const absl::Status&)> on_broken_;
  const absl::Duration try_again_;
  Mailbox<Job> jobs_;
  // On the thread only. What waits for the disk, in order, and why.
  std::deque<Job> stuck_;
  absl::Status why_stuck_;
  int num_failures_ = 0;  // in a row, of what will not pass by itself
  std::thread thread_;
};

}  // namespace portolan
