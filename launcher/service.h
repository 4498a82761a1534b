#pragma once

#include <atomic>
#include <functional>

#include "absl/status/status.h"
#include "comm/transport.h"
#include "launcher/job.h"
#include "launcher/serve_options.h"
#include "runtime/agent/control_stream.h"

namespace portolan {

// What a rank of a service does besides its own requests: nothing, but for
// rank 0 of `serve`.
struct ServiceHooks {
  // The coordinator is a part of the job: its drain is the job's.
  bool drains_with_coordinator = false;
  std::function<void()> on_drain = [] {};
};

// One rank of a service, from its wiring to its goodbye. Sets `interrupted` if
// requests are left that somebody must take up again.
// Errors: of any rank.
absl::Status ServeRank(const ServiceOptions& options,
                       const CoordinatorAddress& address, const Model& model,
                       Transport& transport, const ServiceHooks& hooks,
                       std::atomic<bool>& interrupted);

}  // namespace portolan
