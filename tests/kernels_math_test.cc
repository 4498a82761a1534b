#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "runtime/base/thread_pool.h"
#include "runtime/kernels/math.h"
#include "runtime/kernels/rope_table.h"

namespace portolan {
namespace {

// Distance from the exact value in units of the last place of the result.
double ErrorInUlps(float value, double exact) {
  const double ulp = std::ldexp(1.0, std::ilogb(exact) - 23);
  return std::abs(value - exact) / ulp;
}

class MathTest : public testing::Test {
 protected:
  MathTest() { FlushDenormals(); }
};

TEST_F(MathTest, ExpIsWithinTwoUlps) {
  double largest = 0;
  for (float x = -87.3f; x < 88.7f; x += 0.00137f) {
    largest = std::max(largest, ErrorInUlps(Exp(x), std::exp(double{x})));
  }
  EXPECT_LT(largest, 1.5);
}

TEST_F(MathTest, ExpSaturates) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(-infinity), 0.0f);
  EXPECT_EQ(Exp(-88.0f), 0.0f);
  EXPECT_EQ(Exp(89.0f), infinity);
  EXPECT_EQ(Exp(infinity), infinity);
  EXPECT_TRUE(std::isnan(Exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST_F(MathTest, SigmoidAndSiluAgreeWithDouble) {
  for (float x = -80.0f; x < 80.0f; x += 0.037f) {
    const double sigmoid = 1 / (1 + std::exp(-double{x}));
    EXPECT_LT(ErrorInUlps(Sigmoid(x), sigmoid), 4) << x;
    EXPECT_LT(ErrorInUlps(Silu(x), x * sigmoid), 4) << x;
  }
  EXPECT_EQ(Silu(-200.0f), 0.0f);
  EXPECT_EQ(Silu(200.0f), 200.0f);
}

TEST_F(MathTest, SeriesInDoubleAgreeWithLibm) {
  for (double x = -1000; x < 300000; x += 17.3) {
    EXPECT_NEAR(SinD(x), std::sin(x), 1e-14);
    EXPECT_NEAR(CosD(x), std::cos(x), 1e-14);
  }
  for (double x = -40; x < 40; x += 0.13) {
    EXPECT_NEAR(ExpD(x) / std::exp(x), 1, 1e-14);
    EXPECT_NEAR(LogD(std::exp(x)), x, 1e-13);
  }
}

TEST_F(MathTest, ARopeTableComputesPositionsAsTheyAreReached) {
  const std::vector<double> frequencies = {1, 0.1, 0.003};
  RopeTable table = *RopeTable::Create(frequencies, int64_t{1} << 20);
  EXPECT_EQ(table.bytes(), RopeTable::Bytes(6, int64_t{1} << 20));
  EXPECT_EQ(table.num_positions(), 0);

  table.Reach(8);
  table.Reach(5);
  table.Reach(1001);

  EXPECT_EQ(table.num_positions(), 1001);
  for (const int64_t position : {0, 7, 8, 1000}) {
    for (size_t i = 0; i < 3; ++i) {
      const float angle =
          static_cast<float>(position) * static_cast<float>(frequencies[i]);
      EXPECT_EQ(table.Cos(position)[i], static_cast<float>(CosD(angle)));
      EXPECT_EQ(table.Sin(position)[i], static_cast<float>(SinD(angle)));
    }
  }
}

TEST_F(MathTest, ARopeTableThatNoMemoryHoldsIsAnError) {
  const std::vector<double> frequencies(1 << 10, 1.0);

  EXPECT_TRUE(absl::IsResourceExhausted(
      RopeTable::Create(frequencies, int64_t{1} << 45).status()));
}

}  // namespace
}  // namespace portolan
