#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "runtime/kernels/kernels.h"
#include "runtime/kernels/quantise.h"
#include "tests/kernel_test_util.h"

namespace portolan {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kInt8, WeightFormat::kInt4};

// Values about as large as a model's, group by group of another size.
std::vector<float> Weights(Random& random, int64_t n, int64_t k) {
  std::vector<float> values(static_cast<size_t>(n * k));
  for (size_t i = 0; i < values.size(); ++i) {
    const float size = std::exp2(static_cast<float>(i / 32 % 9) - 8);
    values[i] = random.Uniform() * size;
  }
  return values;
}

TEST(QuantiseTest, ErrorsStayWithinHalfAStepOfEachGroup) {
  for (const WeightFormat format : kFormats) {
    Random random(3);
    const int64_t n = 16;
    const int64_t k = 32 * 9;
    const std::vector<float> values = Weights(random, n, k);
    const QuantisedPair pair(format, values, n, k);
    ASSERT_TRUE(pair.ok);
    // Half a step of the smallest scale that is sure to be tried.
    const float steps = format == WeightFormat::kInt8 ? 64 : 6.2f;

    const auto* from = static_cast<const Bf16*>(pair.exact.data);
    double squares = 0;
    double weight_squares = 0;
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t group = 0; group < k / 32; ++group) {
        float largest = 0;
        double group_squares = 0;
        double bound = 0;
        for (int64_t i = 0; i < 32; ++i) {
          const int64_t at = group * 32 + i;
          const float w =
              ToFloat(ToBf16(values[static_cast<size_t>(row * k + at)]));
          const float back = ToFloat(
              from[group * kTileElements + (i / 2 * 16 + row) * 2 + i % 2]);
          largest = std::max(largest, std::abs(w));
          group_squares += (w - back) * (w - back);
          weight_squares += w * w;
        }
        bound = 32 * std::pow(largest / steps / 2, 2);
        EXPECT_LE(group_squares, bound) << WeightFormatName(format);
        squares += group_squares;
      }
    }
    EXPECT_NEAR(pair.error.error_squares, squares, squares * 1e-5);
    EXPECT_NEAR(pair.error.weight_squares, weight_squares,
                weight_squares * 1e-6);
    EXPECT_NEAR(pair.error.RmsRelative(), std::sqrt(squares / weight_squares),
                1e-5);
  }
}

TEST(QuantiseTest, WhatTheFormatHoldsComesBackUnchanged) {
  for (const WeightFormat format : kFormats) {
    std::vector<float> values;
    for (int i = 0; i < 64; ++i) {
      values.push_back(static_cast<float>(i % 16 - 8) * 0.375f);
    }
    values[5] = format == WeightFormat::kInt8 ? 127 * 0.375f : 0.0f;

    const QuantisedPair pair(format, values, 1, 64);

    ASSERT_TRUE(pair.ok);
    if (format == WeightFormat::kInt4) {
      EXPECT_EQ(pair.error.largest_error, 0);
      EXPECT_EQ(pair.error.RmsRelative(), 0);
    }
    const QuantisedPair again(format, std::vector<float>(64, 0.0f), 1, 64);
    EXPECT_EQ(again.error.MaxRelative(), 0);
  }
}

// Tiles whose inputs are all integers of the format in turn, by scale byte.
TEST(QuantiseTest, EveryProductOfScaleAndIntegerIsABf16AsItStands) {
  for (int byte = 87; byte <= 167; ++byte) {
    for (int q = -127; q <= 127; ++q) {
      std::vector<std::byte> tile(528, static_cast<std::byte>(q));
      std::fill(tile.begin() + 512, tile.end(), static_cast<std::byte>(byte));
      Bf16 back[kTileElements];

      DequantiseTiles(WeightFormat::kInt8, tile.data(), 1, back);

      ASSERT_EQ(ToFloat(back[77]), std::ldexp(q, byte - 127));
    }
  }
  for (int byte = 0; byte <= 255; ++byte) {
    for (int q = -8; q <= 7; ++q) {
      // Nibbles of q + 8, the last of each word of q.
      std::vector<std::byte> tile(272, static_cast<std::byte>((q + 8) * 17));
      for (size_t i = 3; i < 256; i += 4) tile[i] ^= std::byte{0x80};
      std::fill(tile.begin() + 256, tile.end(), static_cast<std::byte>(byte));
      Bf16 back[kTileElements];

      DequantiseTiles(WeightFormat::kInt4, tile.data(), 1, back);

      ASSERT_EQ(ToFloat(back[77]),
                std::ldexp(q * (8 + byte % 8), byte / 8 - 27));
    }
  }
}

TEST(QuantiseTest, WeightsThatDoNotFitAreRefused) {
  for (const WeightFormat format : kFormats) {
    for (const float bad : {std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN(), 1e30f}) {
      std::vector<float> values(32, 1.0f);
      values[17] = bad;
      EXPECT_FALSE(QuantisedPair(format, values, 1, 32).ok) << bad;
    }
    const float large = format == WeightFormat::kInt8 ? 0x1p45f : 1600.0f;
    const QuantisedPair pair(format, std::vector<float>(32, large), 1, 32);
    EXPECT_TRUE(pair.ok);
    EXPECT_LE(pair.error.MaxRelative(), 0.02);
  }
}

TEST(QuantiseTest, TinyWeightsBecomeZeroAndNotNoise) {
  for (const WeightFormat format : kFormats) {
    const QuantisedPair pair(format, std::vector<float>(32, 0x1p-130f), 1, 32);
    ASSERT_TRUE(pair.ok);
    EXPECT_LE(pair.error.largest_error, 0x1p-40);
    EXPECT_EQ(ToFloat(static_cast<const Bf16*>(pair.exact.data)[0]), 0.0f);
  }
}

class QuantisedPathTest : public testing::TestWithParam<TestedPath> {
 protected:
  void SetUp() override {
    if (GetParam().table == nullptr) GTEST_SKIP() << GetParam().missing;
  }
  static const KernelTable& Table() {
    const KernelTable* table = GetParam().table;
    return table == nullptr ? ScalarTable() : *table;
  }

  ThreadPool pool_{1};
  Kernels scalar_{CpuPath::kScalar, pool_};
  Kernels kernels_{CpuPath::kScalar, Table(), pool_};
  Random random_{21};
};

INSTANTIATE_TEST_SUITE_P(Paths, QuantisedPathTest,
                         testing::ValuesIn(TestedPaths()), NameOfPath);

TEST_P(QuantisedPathTest, HasTheBitsOfTheBf16MatrixAtEveryNumberOfRows) {
  struct Size {
    int64_t n, k;
  };
  for (const Size size :
       {Size{16, 32}, Size{33, 70}, Size{64, 320}, Size{7, 129}}) {
    for (const WeightFormat format : kFormats) {
      const QuantisedPair w(format, Weights(random_, size.n, size.k), size.n,
                            size.k);
      const Activations x(ActivationDtype::kBf16, random_.Matrix(40, size.k),
                          size.k);
      const auto expected = Multiply(scalar_, x.view, w.exact);
      for (int64_t rows = 1; rows <= 40; ++rows) {
        const auto actual = Multiply(kernels_, x.Rows(0, rows), w.quantised);

        EXPECT_TRUE(SameBits(
            actual, std::vector<float>(expected.begin(),
                                       expected.begin() + rows * size.n)))
            << WeightFormatName(format) << " " << rows << "x" << size.n << "x"
            << size.k;
      }
    }
  }
}

TEST_P(QuantisedPathTest, TinyAndHugeRowsHaveTheBitsOfTheBf16MatrixToo) {
  // Products that become denormal or overflow: the order of scaling shows.
  for (const WeightFormat format : kFormats) {
    const QuantisedPair w(format, Weights(random_, 48, 160), 48, 160);
    for (const float size : {0x1p-126f, 0x1p-124f, 0x1p-118f, 0x1p-61f,
                             0x1p-60f, 0x1p59f, 0x1p61f, 0x1p120f, 0x1p126f}) {
      std::vector<float> values = random_.Matrix(6, 160);
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = i % 5 == 0 ? 0.0f : random_.Uniform() * size;
      }
      const Activations x(ActivationDtype::kBf16, values, 160);

      EXPECT_TRUE(SameBits(Multiply(kernels_, x.view, w.quantised),
                           Multiply(scalar_, x.view, w.exact)))
          << WeightFormatName(format) << " " << size;
    }
  }
}

TEST_P(QuantisedPathTest, F32ActivationsHaveTheBitsOfTheBf16Matrix) {
  for (const WeightFormat format : kFormats) {
    const QuantisedPair w(format, Weights(random_, 50, 100), 50, 100);
    const Activations x(ActivationDtype::kF32, random_.Matrix(5, 100), 100);

    EXPECT_TRUE(SameBits(Multiply(kernels_, x.view, w.quantised),
                         Multiply(scalar_, x.view, w.exact)));
  }
}

TEST_P(QuantisedPathTest, UnpackingGivesTheTilesThatTheFormatMeans) {
  for (const WeightFormat format : kFormats) {
    const QuantisedPair w(format, Weights(random_, 48, 96), 48, 96);
    const int64_t tiles = 3 * 3;
    std::vector<uint16_t> unpacked(static_cast<size_t>(tiles * kTileElements));
    const QuantisedKernel& kernel =
        format == WeightFormat::kInt8 ? Table().int8 : Table().int4;

    kernel.unpack(w.quantised.data, tiles, unpacked.data());

    const auto* exact = static_cast<const Bf16*>(w.exact.data);
    for (size_t i = 0; i < unpacked.size(); ++i) {
      ASSERT_EQ(unpacked[i], exact[i].bits) << i;
    }
  }
}

TEST_P(QuantisedPathTest, GroupsOfExpertsHaveTheBitsOfTheBf16Matrices) {
  const int64_t k = 96;
  for (const WeightFormat format : kFormats) {
    const QuantisedPair one(format, Weights(random_, 64, k), 64, k);
    const QuantisedPair two(format, Weights(random_, 64, k), 64, k);
    const Activations x(ActivationDtype::kBf16, random_.Matrix(20, k), k);
    std::vector<int32_t> few = {19, 3};
    std::vector<int32_t> many(18);
    std::iota(many.begin(), many.end(), 0);
    const std::vector<int32_t> few_out = {0, 1};
    std::vector<int32_t> many_out(18);
    std::iota(many_out.begin(), many_out.end(), 2);
    const auto run = [&](Kernels& kernels, bool exact) {
      const Kernels::LinearGroup groups[] = {
          {.w = exact ? one.exact : one.quantised,
           .x_rows = few,
           .out_rows = few_out},
          {.w = exact ? two.exact : two.quantised,
           .x_rows = many,
           .out_rows = many_out}};
      Activations h(ActivationDtype::kBf16, 20, 32);
      kernels.GroupedSwiGlu(x.view, groups, h.view);
      std::vector<float> values;
      for (int64_t row = 0; row < 20; ++row) {
        for (int64_t col = 0; col < 32; ++col) values.push_back(h.At(row, col));
      }
      return values;
    };

    EXPECT_TRUE(SameBits(run(kernels_, false), run(scalar_, true)));
  }
}

}  // namespace
}  // namespace portolan
