#include "comm/end_timer.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "comm/termination.h"
#include "runtime/base/steady_now.h"

namespace portolan {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(100);
// A launcher and its own parent may both pass the same wish on.
constexpr absl::Duration kOneWish = absl::Seconds(1);
// Less than the grace of portolan-launch, after which mpirun kills.
constexpr absl::Duration kStuck = absl::Milliseconds(1500);

[[noreturn]] void End(int code) {
  std::fflush(nullptr);
  std::_Exit(code);
}

[[noreturn]] void Fail(const std::string& message, int code) {
  std::fprintf(stderr, "error: %s\n", message.c_str());
  End(code);
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
  lost_at_ = SteadyNow();
}

void EndTimer::Waits(std::string message, absl::Duration limit) {
  MutexLock lock(mu_);
  call_ = Call{.message = std::move(message),
               .until = SteadyNow() + limit,
               .terminations = TerminationCount()};
}

void EndTimer::Returned() {
  MutexLock lock(mu_);
  call_.reset();
}

void EndTimer::Work() {
  MutexLock lock(mu_);
  while (!stopping_) {
    const absl::Time now = SteadyNow();
    if (lost_at_) {
      if (now - *lost_at_ > after_loss_) Fail(message_, 1);
    } else {
      CheckTermination(now);
      if (call_) CheckCall(now);
    }
    changed_.WaitFor(mu_, kLook);
  }
}

void EndTimer::CheckTermination(absl::Time now) {
  const int terminations = TerminationCount();
  if (terminations == 0) return;
  if (!terminated_at_) terminated_at_ = now;
  if (now - *terminated_at_ < kOneWish) of_first_wish_ = terminations;
  const bool late = !call_ && now - *terminated_at_ > after_termination_;
  if (terminations > of_first_wish_ || late) End(143);
}

void EndTimer::CheckCall(absl::Time now) {
  if (now > call_->until) Fail(call_->message, 1);
  if (TerminationCount() == call_->terminations) return;
  if (!call_->terminated_at) call_->terminated_at = now;
  if (now - *call_->terminated_at > kStuck) Fail(call_->message, 143);
}

}  // namespace portolan
