#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "runtime/base/bf16.h"
#include "runtime/base/fp16.h"

namespace portolan {
namespace {

TEST(Bf16Test, RoundsTiesToEven) {
  EXPECT_EQ(ToBf16(1.0f + 0x1p-8f).bits, 0x3f80);  // half way: down to even
  EXPECT_EQ(ToBf16(1.0f + 0x3p-8f).bits, 0x3f82);  // half way: up to even
  EXPECT_EQ(ToBf16(1.0f + 0x1.01p-8f).bits, 0x3f81);
}

TEST(Bf16Test, KeepsInfinitiesAndNans) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(ToFloat(ToBf16(inf)), inf);
  EXPECT_EQ(ToFloat(ToBf16(-inf)), -inf);
  EXPECT_TRUE(std::isnan(ToFloat(ToBf16(std::nanf("")))));
}

TEST(Fp16Test, EveryHalfSurvivesTheWayThroughFloat) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Fp16 half{static_cast<uint16_t>(bits)};
    const float wide = ToFloat(half);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(ToFloat(ToFp16(wide))));
    } else {
      ASSERT_EQ(ToFp16(wide).bits, bits);
    }
  }
}

TEST(Fp16Test, RoundsToNearestEvenAndOverflowsToInfinity) {
  EXPECT_EQ(ToFp16(1.0f + 0x1p-11f).bits, 0x3c00);
  EXPECT_EQ(ToFp16(1.0f + 0x3p-11f).bits, 0x3c02);
  EXPECT_EQ(ToFp16(65519.0f).bits, 0x7bff);
  EXPECT_EQ(ToFp16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(ToFp16(0x1p-25f).bits, 0x0000);  // half of the smallest: to 0
  EXPECT_EQ(ToFp16(0x1.8p-25f).bits, 0x0001);
}

}  // namespace
}  // namespace portolan
