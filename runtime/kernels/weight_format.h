#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"

namespace portolan {

// How a packed matrix (packed_matrix.h) stores its weights. Quantised ones come
// in groups of 32 inputs of one output, each with a scale, symmetric about 0: a
// weight is scale * q. Scales have so few significant bits that the product is
// a bf16 as it stands, so nothing is rounded on the way back, and a quantised
// matrix gives the very bits that its weights would give stored as bf16.
//
//   format  q            scale                             bytes per weight
//   kBf16   -            -                                 2
//   kInt8   -127 .. 127  2^(byte - 127), byte 87 .. 167    1.03125
//   kInt4   -8 .. 7      (8 + byte % 8) * 2^(byte / 8 - 27)  0.53125
enum class WeightFormat : uint8_t { kBf16, kInt8, kInt4 };

// "bf16", "int8", "int4".
std::string_view WeightFormatName(WeightFormat format);

// Errors: kInvalidArgument naming the text and the known names.
absl::StatusOr<WeightFormat> ParseWeightFormat(std::string_view text);

// Bytes of a tile of 16 outputs x 32 inputs.
constexpr int64_t TileBytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return 1024;
    case WeightFormat::kInt8:
      return 512 + 16;
    case WeightFormat::kInt4:
      return 256 + 16;
  }
  return 0;
}

}  // namespace portolan
