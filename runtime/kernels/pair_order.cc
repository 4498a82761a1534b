#include "runtime/kernels/pair_order.h"

#include <array>
#include <bit>
#include <cstddef>

#include "runtime/base/bf16.h"

namespace portolan {
namespace {

constexpr std::size_t kLanes = 16;

struct Factors {
  float x;
  float w;
};

struct PairSum {
  float sum;
  Factors upper;
  Factors lower;
  float expected;
};

constexpr float kInfinity = __builtin_inff();
constexpr float kLargest = 0x1.fffffep127f;
constexpr float kLeast = 0x1p-126f;     // of the normal floats
constexpr float kDenormal = 0x1p-130f;  // a bf16 too
constexpr Factors kNone = {0, 0};

// Written by hand: every factor is a bf16, every result follows from the rule
// alone. Floats from 2^24 to 2^25 are even.
constexpr std::array<PairSum, 2 * kLanes> kSums = {{
    // Upper before lower: a 1 is lost beside 2^24, and not once that has gone.
    {0x1p24f, {1, 1}, {-0x1p12f, 0x1p12f}, 0},
    {0x1p24f, {-0x1p12f, 0x1p12f}, {1, 1}, 1},
    {-0x1p24f, {1, -1}, {0x1p20f, 0x1p4f}, 0},
    {-0x1p24f, {0x1p20f, 0x1p4f}, {1, -1}, -1},
    {kLargest, {0x1p127f, 2}, {-0x1p127f, 2}, kInfinity},
    // Two roundings, not one of the sum nor one of both products together.
    {1, {0x1p15f, 0x1p15f}, {-0x1p15f, 0x1p15f}, 0},
    {0x1p24f, {1, 1}, {1, 1}, 0x1p24f},
    {0x1p24f, {1.25f, 1}, {1.25f, 1}, 0x1.000004p24f},
    {0x1p24f, {0.75f, 1}, {0.75f, 1}, 0x1p24f},
    {0x1p24f, {-0.5f, 1}, {-0.5f, 1}, 0x1p24f},
    // To nearest: down, up, ties to even, and any bit beyond a tie counts.
    {0x1p24f, {3, 1}, kNone, 0x1.000004p24f},
    {0x1.000002p24f, {1, 1}, kNone, 0x1.000004p24f},
    {0x1.000002p24f, kNone, {-1, 1}, 0x1p24f},
    {-0x1.000002p24f, kNone, {1, -1}, -0x1.000004p24f},
    {0x1p24f, {0x1.02p0f, 1}, kNone, 0x1.000002p24f},
    {-0x1p24f, kNone, {0x1.02p0f, -1}, -0x1.000002p24f},
    {0x1p24f, {0x1.fep-1f, 1}, kNone, 0x1p24f},
    {1, kNone, {0x1.02p-12f, 0x1.02p-12f}, 0x1.000002p0f},
    // A product is not rounded: it may be denormal or too large by itself.
    {kLeast, {0x1p-70f, 0x1p-70f}, kNone, 0x1.0004p-126f},
    {kLeast, kNone, {0x1p-70f, -0x1p-69f}, 0},
    {-0x1p127f, {0x1p64f, 0x1p64f}, kNone, 0x1p127f},
    {-0x1p127f, kNone, {-0x1p64f, -0x1p64f}, 0x1p127f},
    // Denormals are zeros: as factors, as the sum, in between, at the end.
    {0, {kDenormal, 0x1p100f}, kNone, 0},
    {0, kNone, {0x1p100f, kDenormal}, 0},
    {kDenormal, {kLeast, 1}, kNone, kLeast},
    {kDenormal, kNone, {0x1p-60f, 0x1p-60f}, 0x1p-120f},
    {0, {0x1p-70f, 0x1p-70f}, {0x1p-63f, 0x1p-63f}, kLeast},
    {kLeast, {-0x1p-64f, 0x1p-63f}, {0x1p-63f, 0x1p-63f}, kLeast},
    {0, kNone, {-0x1p-70f, 0x1p-70f}, -0.0f},
    {1.5f * kLeast, kNone, {-kLeast, 1}, 0},
    // So is what only the coarser grid of denormals would round to 2^-126.
    {kLeast, {0x1.4p-75f, -0x1p-76f}, kNone, 0},
    {kLeast, kNone, {0x1.4p-75f, -0x1p-76f}, 0},
}};

uint32_t Pair(float upper, float lower) {
  return uint32_t{ToBf16(upper).bits} << 16 | ToBf16(lower).bits;
}

}  // namespace

bool HasPairOrder(PairProduct product) {
  for (std::size_t first = 0; first < kSums.size(); first += kLanes) {
    uint32_t x[kLanes];
    uint32_t w[kLanes];
    float sum[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i) {
      const PairSum& of = kSums[first + i];
      x[i] = Pair(of.upper.x, of.lower.x);
      w[i] = Pair(of.upper.w, of.lower.w);
      sum[i] = of.sum;
    }
    product(x, w, sum);
    for (std::size_t i = 0; i < kLanes; ++i) {
      if (std::bit_cast<uint32_t>(sum[i]) !=
          std::bit_cast<uint32_t>(kSums[first + i].expected)) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace portolan
