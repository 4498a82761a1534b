#include <gtest/gtest.h>
#include <immintrin.h>

#include <bit>
#include <cmath>

#include "runtime/kernels/cpu_path.h"
#include "runtime/kernels/kernel_table.h"
#include "runtime/kernels/pair_order.h"

namespace portolan {
namespace {

constexpr uint32_t kFlushResults = 0x8000;
constexpr uint32_t kFlushInputs = 0x0040;
constexpr uint32_t kFlush = kFlushResults | kFlushInputs;
constexpr uint32_t kDown = 0x2000;
constexpr uint32_t kUp = 0x4000;
constexpr uint32_t kToZero = 0x6000;

// Rounds and flushes for a while as MXCSR's bits say.
class Rounding {
 public:
  explicit Rounding(uint32_t bits) : before_(_mm_getcsr()) {
    _mm_setcsr((before_ & ~(kFlush | kToZero)) | bits);
  }
  ~Rounding() { _mm_setcsr(before_); }

 private:
  uint32_t before_;
};

float Upper(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }
float Lower(uint32_t pair) { return std::bit_cast<float>(pair << 16); }

// One fused step; its operands hidden from the compiler, which knows of no
// MXCSR.
float Step(float x, float w, float sum, uint32_t rounding) {
  const Rounding as(rounding);
  const volatile float a = x;
  const volatile float b = w;
  const volatile float c = sum;
  const volatile float result = std::fma(a, b, c);
  return result;
}

template <float (*kSum)(uint32_t x, uint32_t w, float sum)>
void Lanes(const uint32_t* x, const uint32_t* w, float* sum) {
  for (int i = 0; i < 16; ++i) sum[i] = kSum(x[i], w[i], sum[i]);
}

template <uint32_t kFirst, uint32_t kSecond>
float UpperThenLower(uint32_t x, uint32_t w, float sum) {
  return Step(Lower(x), Lower(w), Step(Upper(x), Upper(w), sum, kFirst),
              kSecond);
}

float LowerThenUpper(uint32_t x, uint32_t w, float sum) {
  return Step(Upper(x), Upper(w), Step(Lower(x), Lower(w), sum, kFlush),
              kFlush);
}

float ProductsFirst(uint32_t x, uint32_t w, float sum) {
  const float products = Step(Upper(x), Upper(w), Lower(x) * Lower(w), kFlush);
  return Step(products, 1, sum, kFlush);
}

float RoundedOnce(uint32_t x, uint32_t w, float sum) {
  const Rounding flush(kFlush);
  const volatile double exact =
      double{Upper(x)} * Upper(w) + double{sum} + double{Lower(x)} * Lower(w);
  return static_cast<float>(exact);
}

float RoundedProducts(uint32_t x, uint32_t w, float sum) {
  const float upper = Step(Upper(x), Upper(w), -0.0f, kFlush);
  const float lower = Step(Lower(x), Lower(w), -0.0f, kFlush);
  return Step(lower, 1, Step(upper, 1, sum, kFlush), kFlush);
}

// Denormals away in software: those just below 2^-126 are already rounded.
float FlushedLate(uint32_t x, uint32_t w, float sum) {
  const auto flush = [](float value) {
    return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value)
                                                  : value;
  };
  const float first =
      flush(Step(flush(Upper(x)), flush(Upper(w)), flush(sum), 0));
  return flush(Step(flush(Lower(x)), flush(Lower(w)), first, 0));
}

TEST(PairOrderTest, TwoFusedStepsUpperThenLowerWithFlushesAreTheOrder) {
  EXPECT_TRUE(HasPairOrder(Lanes<UpperThenLower<kFlush, kFlush>>));
}

TEST(PairOrderTest, EveryOtherOrderOfTheTwoProductsIsRefused) {
  EXPECT_FALSE(HasPairOrder(Lanes<LowerThenUpper>));
  EXPECT_FALSE(HasPairOrder(Lanes<ProductsFirst>));
  EXPECT_FALSE(HasPairOrder(Lanes<RoundedOnce>));
  EXPECT_FALSE(HasPairOrder(Lanes<RoundedProducts>));
}

TEST(PairOrderTest, DenormalsThatAreNotZeroAtAnyPlaceAreRefused) {
  EXPECT_FALSE(HasPairOrder(Lanes<UpperThenLower<0, 0>>));
  EXPECT_FALSE(HasPairOrder(Lanes<UpperThenLower<kFlushInputs, kFlush>>));
  EXPECT_FALSE(HasPairOrder(Lanes<UpperThenLower<kFlushResults, kFlush>>));
  EXPECT_FALSE(HasPairOrder(Lanes<UpperThenLower<kFlush, kFlushInputs>>));
  EXPECT_FALSE(HasPairOrder(Lanes<UpperThenLower<kFlush, kFlushResults>>));
  EXPECT_FALSE(HasPairOrder(Lanes<FlushedLate>));
}

TEST(PairOrderTest, RoundingThatIsNotToNearestIsRefusedInEitherStep) {
  EXPECT_FALSE(HasPairOrder(Lanes<UpperThenLower<kFlush | kToZero, kFlush>>));
  EXPECT_FALSE(HasPairOrder(Lanes<UpperThenLower<kFlush, kFlush | kToZero>>));
  EXPECT_FALSE(HasPairOrder(Lanes<UpperThenLower<kFlush | kUp, kFlush>>));
  EXPECT_FALSE(HasPairOrder(Lanes<UpperThenLower<kFlush, kFlush | kUp>>));
  EXPECT_FALSE(HasPairOrder(Lanes<UpperThenLower<kFlush | kDown, kFlush>>));
  EXPECT_FALSE(HasPairOrder(Lanes<UpperThenLower<kFlush, kFlush | kDown>>));
}

TEST(PairOrderTest, TheInstructionHasTheOrderWhateverMxcsrSays) {
  if (!CpuSupports(CpuPath::kAvx512Bf16)) {
    GTEST_SKIP() << "this processor has no avx512bf16";
  }
  for (const uint32_t bits : {0u, kFlush, kToZero, kUp, kDown}) {
    const Rounding as(bits);
    EXPECT_TRUE(HasPairOrder(Avx512Bf16PairProduct)) << bits;
  }
}

}  // namespace
}  // namespace portolan
