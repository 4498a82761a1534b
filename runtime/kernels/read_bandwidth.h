#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/base/thread_pool.h"

namespace portolan {

// The bytes per second that the threads of `pool` read from `memory` together:
// the median over slices of it, each from memory if the whole is larger than
// the caches. The fastest slice would be a limit that others' use of the memory
// seldom grants. Adds what was read to `checksum`, so that no read can be left
// out.
double MeasureReadBandwidth(ThreadPool& pool, std::span<const std::byte> memory,
                            uint64_t& checksum);

// The same of `pool_bytes`, which it allocates.
double MeasureReadBandwidth(ThreadPool& pool, int64_t pool_bytes);

}  // namespace portolan
