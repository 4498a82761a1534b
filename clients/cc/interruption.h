#pragma once

#include <set>

#include "absl/time/time.h"
#include "grpcpp/client_context.h"
#include "runtime/base/mutex.h"

namespace portolan {

// Ends calls and waits early when the user wants to stop.
//
// Thread-safe.
class Interruption {
 public:
  // Cancels all calls that run now or begin later.
  void Trigger() ABSL_LOCKS_EXCLUDED(mu_);

  bool triggered() const ABSL_LOCKS_EXCLUDED(mu_);

  // Waits for `time`; returns false at once when triggered.
  bool Sleep(absl::Duration time) ABSL_LOCKS_EXCLUDED(mu_);

  // While it lives, Trigger() cancels `context`.
  class Scope {
   public:
    Scope(Interruption& interruption, grpc::ClientContext& context);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Interruption& interruption_;
    grpc::ClientContext& context_;
  };

 private:
  mutable Mutex mu_;
  CondVar changed_;
  bool triggered_ ABSL_GUARDED_BY(mu_) = false;
  std::set<grpc::ClientContext*> running_ ABSL_GUARDED_BY(mu_);
};

}  // namespace portolan
