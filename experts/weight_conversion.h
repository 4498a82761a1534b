#pragma once

#include <cstddef>
#include <span>

#include "experts/expert_extents.h"
#include "runtime/base/bf16.h"

namespace portolan {

// Stored weights, little-endian and at any alignment, as bf16: rounded to
// nearest even, bf16 copied. `from` may begin where `to` does.
// Requires from.size() == to.size() * BytesOf(dtype). Thread-safe.
void ConvertToBf16(TensorDtype dtype, std::span<const std::byte> from,
                   std::span<Bf16> to);

}  // namespace portolan
