#pragma once

#include <array>
#include <cstdint>

namespace portolan {

// Philox4x32-10: a counter-based generator, so that the random number of a
// position depends on seed and position alone, whatever was drawn before.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
constexpr std::array<uint32_t, 4> Philox4x32(uint64_t key,
                                             std::array<uint32_t, 4> counter) {
  auto key_low = static_cast<uint32_t>(key);
  auto key_high = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key_low,
               static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key_high,
               static_cast<uint32_t>(a)};
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}

// Uniform in [0, 1), 53 bits, for the token at absolute position `position`.
constexpr double UniformAt(uint64_t seed, uint64_t position) {
  const std::array<uint32_t, 4> bits =
      Philox4x32(seed, {static_cast<uint32_t>(position),
                        static_cast<uint32_t>(position >> 32), 0, 0});
  const uint64_t mantissa = ((uint64_t{bits[0]} << 32) | bits[1]) >> 11;
  return static_cast<double>(mantissa) * 0x1p-53;
}

}  // namespace portolan
