#include "runtime/kernels/quantise.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/base/check.h"
#include "runtime/kernels/packed_matrix.h"

namespace portolan {
namespace {

constexpr int kGroup = static_cast<int>(kTileInputs);
constexpr int kOutputs = static_cast<int>(kTileOutputs);

constexpr int kLeastInt8Scale = 87;
constexpr int kLargestInt8Scale = 167;
constexpr int kLargestInt4Scale = 255;
// Scales below the one that fits the largest weight that are tried for kInt4.
constexpr int kInt4Trials = 4;

float Int8Scale(int byte) {
  return std::bit_cast<float>(static_cast<uint32_t>(byte) << 23);
}

float Int4Scale(int byte) {
  return std::bit_cast<float>((static_cast<uint32_t>(byte) << 20) +
                              (uint32_t{127 - 24} << 23));
}

struct Group {
  std::array<float, kGroup> w;
  float largest = 0;
};

// The best of the trials so far.
struct Choice {
  int byte = 0;
  std::array<int8_t, kGroup> q = {};
  float squares = std::numeric_limits<float>::infinity();
  float largest_error = 0;
};

// Rounds to an integer, to nearest even, for |x| < 2^22.
float RoundToInteger(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

void Try(const Group& group, int byte, float scale, float low, float high,
         Choice& best) {
  const float inverse = 1.0f / scale;
  std::array<float, kGroup> q;
  std::array<float, kGroup> error;
  for (size_t i = 0; i < kGroup; ++i) {
    q[i] = std::min(std::max(RoundToInteger(group.w[i] * inverse), low), high);
    error[i] = std::abs(group.w[i] - q[i] * scale);
  }
  float squares = 0;
  float largest = 0;
  for (size_t i = 0; i < kGroup; ++i) {
    squares += error[i] * error[i];
    largest = std::max(largest, error[i]);
  }
  if (squares >= best.squares) return;
  best.byte = byte;
  best.squares = squares;
  best.largest_error = largest;
  for (size_t i = 0; i < kGroup; ++i) best.q[i] = static_cast<int8_t>(q[i]);
}

// False if no scale is large enough.
bool ChooseInt8(const Group& group, Choice& best) {
  int exponent = 0;
  std::frexp(group.largest, &exponent);  // largest < 2^exponent
  const int byte = std::max(exponent - 7 + 127, kLeastInt8Scale);
  if (byte + 1 > kLargestInt8Scale) return false;
  for (const int trial : {byte, byte + 1}) {
    Try(group, trial, Int8Scale(trial), -127, 127, best);
  }
  return true;
}

bool ChooseInt4(const Group& group, Choice& best) {
  // The byte whose scale is just below largest / 7, by the order of floats.
  const uint32_t seventh = std::bit_cast<uint32_t>(group.largest / 7);
  const uint32_t base = uint32_t{127 - 24} << 23;
  const int below =
      seventh < base ? 0 : static_cast<int>((seventh - base) >> 20);
  const int fitting = Int4Scale(below) * 7 < group.largest ? below + 1 : below;
  if (fitting > kLargestInt4Scale) return false;
  for (int trial = fitting; trial >= std::max(fitting - kInt4Trials, 0);
       --trial) {
    Try(group, trial, Int4Scale(trial), -8, 7, best);
  }
  return true;
}

size_t TileIndex(int k, int output) {
  return static_cast<size_t>((k / 2 * kOutputs + output) * 2 + k % 2);
}

// False if a weight is not finite.
bool LoadGroup(const Bf16* tile, int output, Group& group) {
  group.largest = 0;
  for (int k = 0; k < kGroup; ++k) {
    const float w = ToFloat(tile[TileIndex(k, output)]);
    group.w[static_cast<size_t>(k)] = w;
    group.largest = std::max(group.largest, std::abs(w));
    if (!std::isfinite(w)) return false;
  }
  return true;
}

void StoreGroup(WeightFormat format, const Choice& choice, int output,
                std::byte* tile) {
  if (format == WeightFormat::kInt8) {
    for (int k = 0; k < kGroup; ++k) {
      tile[k * kOutputs + output] =
          static_cast<std::byte>(choice.q[static_cast<size_t>(k)]);
    }
    tile[kGroup * kOutputs + output] = static_cast<std::byte>(choice.byte);
    return;
  }
  for (int word = 0; word < 4; ++word) {
    uint32_t nibbles = 0;
    for (int n = 0; n < 8; ++n) {
      const int q = choice.q[static_cast<size_t>(4 * n + word)];
      const int stored = n == 7 ? q & 15 : q + 8;
      nibbles |= static_cast<uint32_t>(stored) << (4 * n);
    }
    std::memcpy(tile + (word * kOutputs + output) * 4, &nibbles, 4);
  }
  tile[4 * kOutputs * 4 + output] = static_cast<std::byte>(choice.byte);
}

int QuantisedValue(WeightFormat format, const std::byte* tile, int k,
                   int output) {
  if (format == WeightFormat::kInt8) {
    return static_cast<int8_t>(tile[k * kOutputs + output]);
  }
  uint32_t nibbles = 0;
  std::memcpy(&nibbles, tile + (k % 4 * kOutputs + output) * 4, 4);
  const int n = k / 4;
  const int stored = static_cast<int>(nibbles >> (4 * n) & 15u);
  return n == 7 ? (stored ^ 8) - 8 : stored - 8;
}

}  // namespace

void QuantisationError::Add(const QuantisationError& other) {
  largest_error = std::max(largest_error, other.largest_error);
  largest_weight = std::max(largest_weight, other.largest_weight);
  error_squares += other.error_squares;
  weight_squares += other.weight_squares;
}

double QuantisationError::MaxRelative() const {
  return largest_weight == 0 ? 0 : largest_error / largest_weight;
}

double QuantisationError::RmsRelative() const {
  return weight_squares == 0 ? 0 : std::sqrt(error_squares / weight_squares);
}

bool QuantiseTiles(WeightFormat format, const Bf16* tiles, int64_t num_tiles,
                   std::byte* to, QuantisationError& error) {
  PORTOLAN_CHECK(format != WeightFormat::kBf16);
  for (int64_t t = 0; t < num_tiles;
       ++t, tiles += kTileElements, to += TileBytes(format)) {
    for (int output = 0; output < kOutputs; ++output) {
      Group group;
      Choice choice;
      if (!LoadGroup(tiles, output, group)) return false;
      const bool fits = format == WeightFormat::kInt8
                            ? ChooseInt8(group, choice)
                            : ChooseInt4(group, choice);
      if (!fits) return false;
      StoreGroup(format, choice, output, to);
      QuantisationError of_group{.largest_error = choice.largest_error,
                                 .largest_weight = group.largest,
                                 .error_squares = choice.squares};
      for (const float w : group.w) of_group.weight_squares += double{w} * w;
      error.Add(of_group);
    }
  }
  return true;
}

void DequantiseTiles(WeightFormat format, const std::byte* tiles,
                     int64_t num_tiles, Bf16* to) {
  PORTOLAN_CHECK(format != WeightFormat::kBf16);
  const bool is_int8 = format == WeightFormat::kInt8;
  const std::byte* scales = tiles + TileBytes(format) - kOutputs;
  for (int64_t t = 0; t < num_tiles; ++t, to += kTileElements,
               tiles += TileBytes(format), scales += TileBytes(format)) {
    for (int output = 0; output < kOutputs; ++output) {
      const int byte = static_cast<int>(scales[output]);
      const float scale = is_int8 ? Int8Scale(byte) : Int4Scale(byte);
      for (int k = 0; k < kGroup; ++k) {
        const int q = QuantisedValue(format, tiles, k, output);
        to[TileIndex(k, output)] = ToBf16(static_cast<float>(q) * scale);
      }
    }
  }
}

}  // namespace portolan
