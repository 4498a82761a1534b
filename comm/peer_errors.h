#pragma once

#include <span>
#include <string>

#include "absl/status/status.h"
#include "comm/peer_watch.h"
#include "comm/transport.h"

namespace portolan {

// The errors of a wait that did not end well, worded alike by all transports.

// " in phase `header` of layer 3, step 17", as far as known.
std::string Describe(const WaitContext& context);

// lost.code: "rank 2 on host7 is lost (its process ended), noticed by ...".
absl::Status LostPeerError(const Transport& transport, const LostPeer& lost,
                           const WaitContext& context);

// kDeadlineExceeded naming the ranks that were waited for; `slow` not empty.
absl::Status SlowPeersError(const Transport& transport,
                            std::span<const Rank> slow,
                            const WaitContext& context);

}  // namespace portolan
