#include "comm/end_timer.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/time/clock.h"
#include "comm/termination.h"

namespace portolan {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(200);

[[noreturn]] void End(int code) {
  std::fflush(nullptr);
  std::_Exit(code);
}

}  // namespace

EndTimer::EndTimer(absl::Duration after_loss, absl::Duration after_termination)
    : after_loss_(after_loss),
      after_termination_(after_termination),
      thread_([this] { Work(); }) {}

EndTimer::~EndTimer() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void EndTimer::Lost(std::string message) {
  MutexLock lock(mu_);
  message_ = std::move(message);
  lost_at_ = absl::Now();
}

void EndTimer::Work() {
  std::optional<absl::Time> terminated_at;
  MutexLock lock(mu_);
  while (!stopping_) {
    const absl::Time now = absl::Now();
    if (!terminated_at && TerminationCount() > 0) terminated_at = now;
    if (lost_at_) {
      if (now - *lost_at_ > after_loss_) {
        std::fprintf(stderr, "error: %s\n", message_.c_str());
        End(1);
      }
    } else if (TerminationCount() > 1 ||
               (terminated_at && now - *terminated_at > after_termination_)) {
      End(143);
    }
    changed_.WaitFor(mu_, kLook);
  }
}

}  // namespace portolan
