#pragma once

#include <cstddef>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "comm/transport.h"

namespace portolan {

struct LocalWorldOptions {
  size_t total_ring_bytes = 16 << 20;  // shared by all pairs of ranks
};

// Runs `body` once per rank, each on a thread of this process with denormals
// flushed, over a Transport named "local". For `--ranks N` and for tests.
//
// A rank that returns an error is lost to the others: their next wait ends with
// an error of that code naming it. One that returns OK early has left: only who
// waits for it gets kAborted.
//
// Returns the error of the lowest failing rank that is not kAborted, else any
// kAborted, else OK.
absl::Status RunLocalWorld(int world_size,
                           absl::FunctionRef<absl::Status(Transport&)> body,
                           const LocalWorldOptions& options = {});

}  // namespace portolan
