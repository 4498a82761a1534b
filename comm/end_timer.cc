#include "comm/end_timer.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/time/clock.h"
#include "comm/termination.h"

namespace portolan {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(200);
// A launcher and its own parent may both pass the same wish on.
constexpr absl::Duration kOneWish = absl::Seconds(1);

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
  int of_first_wish = 0;
  MutexLock lock(mu_);
  while (!stopping_) {
    const absl::Time now = absl::Now();
    const int terminations = TerminationCount();
    if (!terminated_at && terminations > 0) terminated_at = now;
    if (terminated_at && now - *terminated_at < kOneWish) {
      of_first_wish = terminations;
    }
    if (lost_at_) {
      if (now - *lost_at_ > after_loss_) {
        std::fprintf(stderr, "error: %s\n", message_.c_str());
        End(1);
      }
    } else if (terminated_at && (terminations > of_first_wish ||
                                 now - *terminated_at > after_termination_)) {
      End(143);
    }
    changed_.WaitFor(mu_, kLook);
  }
}

}  // namespace portolan
