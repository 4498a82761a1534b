#include "clients/cc/interruption.h"

#include "absl/time/clock.h"

namespace portolan {

void Interruption::Trigger() {
  MutexLock lock(mu_);
  triggered_ = true;
  // TryCancel() only hands the wish on, and the contexts outlive their entry.
  for (grpc::ClientContext* context : running_) context->TryCancel();
  changed_.NotifyAll();
}

bool Interruption::triggered() const {
  MutexLock lock(mu_);
  return triggered_;
}

bool Interruption::Sleep(absl::Duration time) {
  const absl::Time end = absl::Now() + time;
  MutexLock lock(mu_);
  while (!triggered_ && absl::Now() < end) {
    changed_.WaitFor(mu_, end - absl::Now());
  }
  return !triggered_;
}

Interruption::Scope::Scope(Interruption& interruption,
                           grpc::ClientContext& context)
    : interruption_(interruption), context_(context) {
  MutexLock lock(interruption_.mu_);
  if (interruption_.triggered_) context_.TryCancel();
  interruption_.running_.insert(&context_);
}

Interruption::Scope::~Scope() {
  MutexLock lock(interruption_.mu_);
  interruption_.running_.erase(&context_);
}

}  // namespace portolan
