#pragma once

#include <bit>
#include <cstdint>

namespace portolan {

// A bfloat16: the upper half of an IEEE binary32.
struct Bf16 {
  uint16_t bits = 0;

  friend bool operator==(const Bf16&, const Bf16&) = default;
};
static_assert(sizeof(Bf16) == 2);

constexpr float ToFloat(Bf16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

// Rounds to nearest even; a NaN stays a (quiet) NaN. Values too small for a
// normal bf16 become denormal bf16s, which every kernel reads as zero (DAZ).
constexpr Bf16 ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return Bf16{static_cast<uint16_t>((bits >> 16) | 0x0040u)};
  }
  return Bf16{
      static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

}  // namespace portolan
