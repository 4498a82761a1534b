#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "experts/expert_extents.h"
#include "runtime/base/bf16.h"

namespace portolan {

// Stored weights, little-endian and at any alignment, as bf16: rounded to
// nearest even, bf16 copied. `from` may begin where `to` does.
// Requires from.size() == to.size() * BytesOf(dtype) and a dtype other than
// kF8E4M3. Thread-safe.
void ConvertToBf16(TensorDtype dtype, std::span<const std::byte> from,
                   std::span<Bf16> to);

// Block-scaled weights as bf16: the f32 product of an e4m3 value and its scale,
// rounded once; products below the least normal float are zero. `from` holds
// the elements of the row-major matrix from index `first` on, as many as `to`,
// and may be the second half of the memory of `to`; `scale_bytes` all scales as
// they are stored, at any alignment. False if a scale is not finite.
// Thread-safe.
bool ConvertBlocksToBf16(const BlockScales& scales,
                         std::span<const std::byte> scale_bytes,
                         std::span<const std::byte> from, int64_t first,
                         std::span<Bf16> to);

}  // namespace portolan
