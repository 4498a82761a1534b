#pragma once

#include <cstdint>

namespace portolan {

// SplitMix64 (Steele, Lea and Flood, 2014): the next of a row of random
// numbers, the same everywhere.
inline uint64_t NextRandom(uint64_t& state) {
  state += 0x9e3779b97f4a7c15u;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// 0 <= result < 1.
inline double NextUnit(uint64_t& state) {
  return static_cast<double>(NextRandom(state) >> 11) * 0x1.0p-53;
}

}  // namespace portolan
