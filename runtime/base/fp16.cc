#include "runtime/base/fp16.h"

#include <bit>

namespace portolan {

float ToFloat(Fp16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1fu;
  const uint32_t mantissa = value.bits & 0x3ffu;
  if (exponent == 31) {
    return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  }
  if (exponent != 0) {
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) |
                                (mantissa << 13));
  }
  if (mantissa == 0) return std::bit_cast<float>(sign);
  const auto shift = static_cast<uint32_t>(std::countl_zero(mantissa) - 21);
  return std::bit_cast<float>(sign | ((113 - shift) << 23) |
                              (((mantissa << shift) & 0x3ffu) << 13));
}

Fp16 ToFp16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return Fp16{static_cast<uint16_t>(sign | 0x7e00u)};
  }
  if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    return Fp16{static_cast<uint16_t>(sign | 0x7c00u)};
  }
  if (magnitude >= 0x38800000u) {  // a normal binary16
    const uint32_t rounded =
        magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23);
    return Fp16{static_cast<uint16_t>(sign | (rounded >> 13))};
  }
  if (magnitude < 0x33000000u) return Fp16{static_cast<uint16_t>(sign)};
  const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t shift = 126u - (magnitude >> 23);  // 14 .. 24
  const uint32_t kept = mantissa >> shift;
  const uint32_t rest = mantissa & ((1u << shift) - 1);
  const uint32_t half = 1u << (shift - 1);
  const bool up = rest > half || (rest == half && (kept & 1u) != 0);
  return Fp16{static_cast<uint16_t>(sign | (kept + (up ? 1u : 0u)))};
}

}  // namespace portolan
