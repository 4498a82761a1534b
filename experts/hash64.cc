#include "experts/hash64.h"

#include <array>
#include <bit>
#include <cstring>

namespace portolan {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87u;
constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4Fu;
constexpr uint64_t kPrime3 = 0x165667B19E3779F9u;
constexpr uint64_t kPrime4 = 0x85EBCA77C2B2AE63u;
constexpr uint64_t kPrime5 = 0x27D4EB2F165667C5u;
constexpr size_t kStripe = 32;  // bytes: four lanes of eight

template <typename T>
uint64_t Load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

uint64_t Round(uint64_t lane, uint64_t input) {
  return std::rotl(lane + input * kPrime2, 31) * kPrime1;
}

// Digests whole stripes; `data` is advanced to what remains.
uint64_t HashStripes(std::span<const std::byte>& data, uint64_t seed) {
  std::array<uint64_t, 4> lanes = {seed + kPrime1 + kPrime2, seed + kPrime2,
                                   seed, seed - kPrime1};
  while (data.size() >= kStripe) {
    for (size_t i = 0; i < lanes.size(); ++i) {
      lanes[i] = Round(lanes[i], Load<uint64_t>(data.data() + 8 * i));
    }
    data = data.subspan(kStripe);
  }
  uint64_t hash = std::rotl(lanes[0], 1) + std::rotl(lanes[1], 7) +
                  std::rotl(lanes[2], 12) + std::rotl(lanes[3], 18);
  for (const uint64_t lane : lanes) {
    hash = (hash ^ Round(0, lane)) * kPrime1 + kPrime4;
  }
  return hash;
}

uint64_t HashTail(std::span<const std::byte> data, uint64_t hash) {
  for (; data.size() >= 8; data = data.subspan(8)) {
    hash ^= Round(0, Load<uint64_t>(data.data()));
    hash = std::rotl(hash, 27) * kPrime1 + kPrime4;
  }
  for (; data.size() >= 4; data = data.subspan(4)) {
    hash ^= Load<uint32_t>(data.data()) * kPrime1;
    hash = std::rotl(hash, 23) * kPrime2 + kPrime3;
  }
  for (const std::byte byte : data) {
    hash ^= static_cast<uint64_t>(byte) * kPrime5;
    hash = std::rotl(hash, 11) * kPrime1;
  }
  return hash;
}

}  // namespace

uint64_t Hash64(std::span<const std::byte> data, uint64_t seed) {
  const size_t size = data.size();
  uint64_t hash = size >= kStripe ? HashStripes(data, seed) : seed + kPrime5;
  hash = HashTail(data, hash + size);
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

}  // namespace portolan
