#pragma once

#include <cstdint>

namespace portolan {

// An IEEE binary16, as safetensors' F16, hints and traces hold it.
struct Fp16 {
  uint16_t bits = 0;

  friend bool operator==(const Fp16&, const Fp16&) = default;
};
static_assert(sizeof(Fp16) == 2);

// Exact, denormals included (by integer arithmetic: DAZ does not apply).
float ToFloat(Fp16 value);

// Rounds to nearest even; too large becomes infinity, a NaN stays a NaN.
Fp16 ToFp16(float value);

}  // namespace portolan
