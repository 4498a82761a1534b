#pragma once

#include <vector>

#include "clients/cc/connection.h"
#include "clients/cc/interruption.h"
#include "clients/cc/load.h"

namespace portolan {

// How to send: no request is ever tried twice, for that is what is measured.
struct LoadOptions {
  // Open loop (0): each request at its arrival, however many are in work. Else
  // so many in work, each followed by the next; arrivals do not matter.
  int closed = 0;
  absl::Duration duration = absl::InfiniteDuration();  // sends nothing later
  // Submit calls, which end once the request is accepted: no tokens come.
  bool submit = false;
  // How long the last ones may take; then they are cancelled.
  absl::Duration patience = absl::Seconds(120);
};

// Sends the calls, Generate or Submit, and waits until all have ended. One
// record per request that was sent, in order of sending. An interruption ends
// it early.
std::vector<LoadRecord> RunLoad(const Connection& connection,
                                const std::vector<LoadRequest>& requests,
                                const LoadOptions& options,
                                Interruption& interruption);

}  // namespace portolan
