#pragma once

#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "runtime/base/mutex.h"

namespace portolan {

// Ends the process if its main thread does not do so in time after a peer was
// lost (exit code 1, with an error line) or a SIGTERM came (exit code 143). A
// lost peer goes before a SIGTERM, which mpirun sends to survivors. A second
// SIGTERM, more than a second after the first, ends it at once.
//
// It also watches over calls into MPI that have no deadline of their own.
//
// Thread-safe.
class EndTimer {
 public:
  EndTimer(absl::Duration after_loss, absl::Duration after_termination);
  ~EndTimer();

  // A peer is lost; `message` follows "error: " if the time runs out.
  void Lost(std::string message) ABSL_LOCKS_EXCLUDED(mu_);

  // The main thread waits inside MPI until Returned(): for longer than `limit`
  // (exit code 1), or soon after a SIGTERM that came meanwhile (143), the
  // process ends with "error: `message`".
  void Waits(std::string message, absl::Duration limit)
      ABSL_LOCKS_EXCLUDED(mu_);
  void Returned() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Call {
    std::string message;
    absl::Time until;
    int terminations = 0;  // before it
    std::optional<absl::Time> terminated_at = {};
  };

  void Work() ABSL_LOCKS_EXCLUDED(mu_);
  void CheckTermination(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CheckCall(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const absl::Duration after_loss_;
  const absl::Duration after_termination_;
  Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Time> lost_at_ ABSL_GUARDED_BY(mu_);
  std::string message_ ABSL_GUARDED_BY(mu_);
  std::optional<Call> call_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Time> terminated_at_ ABSL_GUARDED_BY(mu_);
  int of_first_wish_ ABSL_GUARDED_BY(mu_) = 0;
  std::thread thread_;
};

}  // namespace portolan
