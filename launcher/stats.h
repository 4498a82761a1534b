#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "comm/transport.h"
#include "launcher/wiring.h"

namespace portolan {

// What a run did, apart from the rank's own parts.
struct RunFigures {
  int64_t steps = 0;
  double seconds = 0;
};

// Collective: brings every rank's figures to rank 0, which writes them as one
// JSON object to `path`: sums over ranks, and "per_rank".
// Errors: as Transport; kUnavailable naming the file on rank 0.
absl::Status WriteStats(const std::string& path, const RankRuntime& rank,
                        const RunFigures& figures, Transport& transport);

}  // namespace portolan
