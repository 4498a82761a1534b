#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace portolan {

// XXH64 of `data`: fast (about 10 GB/s), well spread, not for adversaries. The
// value is the same on every little-endian machine, so files may hold it.
// Source: xxHash specification 0.1.1 (Collet).
uint64_t Hash64(std::span<const std::byte> data, uint64_t seed = 0);

}  // namespace portolan
