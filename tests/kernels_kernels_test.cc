#include "runtime/kernels/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/base/thread_pool.h"
#include "tests/kernel_test_util.h"

namespace portolan {
namespace {

// Sizes around the borders of blocks, register tiles and groups of rows.
struct Shape {
  int64_t m, n, k;
};
const Shape kShapes[] = {
    {1, 1, 1},    {1, 16, 32},   {2, 17, 33},   {3, 48, 100},
    {4, 40, 64},  {5, 31, 96},   {6, 64, 31},   {7, 33, 320},
    {13, 16, 64}, {16, 96, 96},  {17, 15, 160}, {31, 80, 65},
    {32, 32, 32}, {33, 112, 48}, {67, 50, 130}, {200, 33, 64}};

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Of either kind, and one that becomes infinite in most products.
constexpr float kPoisons[] = {kInfinity, -kInfinity,
                              std::numeric_limits<float>::quiet_NaN(),
                              0x1.fep127f};

constexpr ActivationDtype kDtypes[] = {ActivationDtype::kBf16,
                                       ActivationDtype::kF32};

std::vector<float> Values(const Activations& act) {
  std::vector<float> values;
  for (int64_t row = 0; row < act.view.rows; ++row) {
    for (int64_t col = 0; col < act.view.stride; ++col) {
      values.push_back(act.At(row, col));
    }
  }
  return values;
}

MatrixView<float> View(std::vector<float>& values, int64_t cols) {
  return {values, static_cast<int64_t>(values.size()) / cols, cols};
}

MatrixView<const float> ConstView(const std::vector<float>& values,
                                  int64_t cols) {
  return {values, static_cast<int64_t>(values.size()) / cols, cols};
}

class ScalarTest : public testing::Test {
 protected:
  ThreadPool pool_{1};
  Kernels kernels_{CpuPath::kScalar, pool_};
  Random random_{11};
};

TEST_F(ScalarTest, LinearAgreesWithDouble) {
  for (const Shape& shape : kShapes) {
    for (const auto dtype : kDtypes) {
      const Activations x(dtype, random_.Matrix(shape.m, shape.k), shape.k);
      const std::vector<float> w = random_.Matrix(shape.n, shape.k);
      const PackedWeights packed(w, shape.n, shape.k);
      const std::vector<float> bias = random_.Matrix(1, shape.n);

      const auto out = Multiply(kernels_, x.view, packed.matrix, bias.data());

      for (int64_t m = 0; m < shape.m; ++m) {
        for (int64_t n = 0; n < shape.n; ++n) {
          double sum = bias[static_cast<size_t>(n)];
          double size = std::abs(sum) + 1e-30;
          for (int64_t k = 0; k < shape.k; ++k) {
            const float weight =
                ToFloat(ToBf16(w[static_cast<size_t>(n * shape.k + k)]));
            sum += double{x.At(m, k)} * weight;
            size += std::abs(double{x.At(m, k)} * weight);
          }
          ASSERT_NEAR(out[static_cast<size_t>(m * shape.n + n)], sum,
                      size * 1e-6);
        }
      }
    }
  }
}

TEST_F(ScalarTest, TheOrderOfAccumulationIsTheStatedOne) {
  // One chain over all products would end at 0, and so would an even and an odd
  // chain that run on from block to block: the 1 is lost beside 2^30.
  std::vector<float> x(64, 0.0f);
  x[0] = 0x1p30f;
  x[1] = 1;
  x[2] = -0x1p30f;
  x[32] = 0x1p30f;
  x[33] = -0x1p30f;
  const PackedWeights w(std::vector<float>(64, 1.0f), 1, 64);
  const Activations act(ActivationDtype::kF32, x, 64);

  const auto out = Multiply(kernels_, act.view, w.matrix);

  // First block: even 2^30 - 2^30, odd 1. Second: even 2^30, odd -2^30.
  EXPECT_EQ(out, std::vector<float>{1.0f});
}

TEST_F(ScalarTest, DenormalsAreZeroAndGiveNoNan) {
  const Activations x(ActivationDtype::kBf16, std::vector<float>(64, 0x1p-130f),
                      64);
  const PackedWeights w(std::vector<float>(64, 0x1p100f), 1, 64);

  EXPECT_EQ(Multiply(kernels_, x.view, w.matrix), std::vector<float>{0.0f});
}

TEST_F(ScalarTest, RmsNormAgreesWithDouble) {
  const int64_t cols = 100;
  const std::vector<float> x = random_.Matrix(9, cols);
  const std::vector<float> weight = random_.Matrix(1, cols);
  Activations act(ActivationDtype::kF32, 9, cols);

  kernels_.RmsNorm(ConstView(x, cols), weight, 1e-6f, act.view, nullptr);

  for (int64_t row = 0; row < 9; ++row) {
    double squares = 0;
    for (int64_t c = 0; c < cols; ++c) {
      squares += std::pow(x[static_cast<size_t>(row * cols + c)], 2);
    }
    const double scale = 1 / std::sqrt(squares / double{cols} + 1e-6);
    for (int64_t c = 0; c < cols; ++c) {
      EXPECT_NEAR(act.At(row, c),
                  x[static_cast<size_t>(row * cols + c)] * scale *
                      weight[static_cast<size_t>(c)],
                  1e-4);
    }
  }
}

RopeTable RopeOf(double theta, int rotary_dim, int64_t positions) {
  std::vector<double> frequencies;
  for (int i = 0; i < rotary_dim; i += 2) {
    frequencies.push_back(std::pow(theta, -double(i) / rotary_dim));
  }
  RopeTable rope = *RopeTable::Create(frequencies, positions);
  rope.Reach(positions);
  return rope;
}

TEST_F(ScalarTest, RopeRotatesHalvesByPositionTimesFrequency) {
  const RopeTable rope = RopeOf(10000.0, 32, 64);
  std::vector<float> heads = random_.Matrix(2, 80);  // 2 heads x 40
  const std::vector<float> before = heads;
  const std::vector<int32_t> positions = {5, 63};

  kernels_.HeadNormRope(View(heads, 80), 40, {}, 0, rope, positions);

  for (size_t row = 0; row < 2; ++row) {
    for (size_t head = 0; head < 2; ++head) {
      const float* x = before.data() + row * 80 + head * 40;
      const float* y = heads.data() + row * 80 + head * 40;
      for (size_t i = 0; i < 16; ++i) {
        const double angle =
            positions[row] * std::pow(10000.0, -2.0 * double(i) / 32);
        EXPECT_NEAR(y[i], x[i] * std::cos(angle) - x[i + 16] * std::sin(angle),
                    1e-4);
        EXPECT_NEAR(y[i + 16],
                    x[i + 16] * std::cos(angle) + x[i] * std::sin(angle), 1e-4);
      }
      for (size_t i = 32; i < 40; ++i) EXPECT_EQ(y[i], x[i]);
    }
  }
}

TEST_F(ScalarTest, SoftmaxIsAProbabilityAlsoOfHugeScores) {
  std::vector<float> rows = {1e30f, -1e30f, 1e30f, 0.0f,  // ties at the top
                             1.0f,  2.0f,   3.0f,  -5.0f};

  kernels_.Softmax(View(rows, 4));

  EXPECT_EQ(std::vector(rows.begin(), rows.begin() + 4),
            (std::vector<float>{0.5f, 0.0f, 0.5f, 0.0f}));
  const double sum = std::exp(-2.0) + std::exp(-1.0) + 1 + std::exp(-8.0);
  EXPECT_NEAR(rows[4], std::exp(-2.0) / sum, 1e-7);
  EXPECT_NEAR(rows[7], std::exp(-8.0) / sum, 1e-9);
}

class PathTest : public testing::TestWithParam<TestedPath> {
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
  Random random_{7};
};

INSTANTIATE_TEST_SUITE_P(Paths, PathTest, testing::ValuesIn(TestedPaths()),
                         NameOfPath);

TEST_P(PathTest, LinearHasTheBitsOfTheScalarPath) {
  for (const Shape& shape : kShapes) {
    for (const auto dtype : kDtypes) {
      const Activations x(dtype, random_.Matrix(shape.m, shape.k), shape.k);
      const PackedWeights w(random_.Matrix(shape.n, shape.k), shape.n, shape.k);
      const std::vector<float> bias = random_.Matrix(1, shape.n);

      const auto expected = Multiply(scalar_, x.view, w.matrix, bias.data());
      const auto actual = Multiply(kernels_, x.view, w.matrix, bias.data());

      EXPECT_TRUE(SameBits(actual, expected))
          << shape.m << "x" << shape.n << "x" << shape.k;
    }
  }
}

TEST_P(PathTest, ARowAloneHasTheBitsOfTheRowInItsBatch) {
  const Activations x(ActivationDtype::kBf16, random_.Matrix(67, 160), 160);
  const PackedWeights w(random_.Matrix(40, 160), 40, 160);
  const auto batch = Multiply(kernels_, x.view, w.matrix);

  for (int64_t row = 0; row < 67; ++row) {
    const auto alone = Multiply(kernels_, x.Rows(row, 1), w.matrix);
    const auto begin = batch.begin() + row * 40;
    EXPECT_TRUE(SameBits(alone, std::vector<float>(begin, begin + 40)));
  }
}

// Rows of x, or outputs of the weights, that hold one such value.
bool IsPoisoned(int64_t i) { return i % 9 == 4; }

std::vector<float> Poisoned(std::vector<float> values, int64_t cols,
                            float poison) {
  for (int64_t i = 0; i < static_cast<int64_t>(values.size()) / cols; ++i) {
    if (!IsPoisoned(i)) continue;
    values[static_cast<size_t>(i * cols + i * 7 % cols)] = poison;
  }
  return values;
}

TEST_P(PathTest, WhatIsNotFiniteStaysInItsRowOfX) {
  constexpr int64_t n = 33;
  constexpr int64_t k = 70;
  constexpr int64_t rows = 40;
  const PackedWeights w(random_.Matrix(n, k), n, k);
  for (const auto dtype : kDtypes) {
    const std::vector<float> values = random_.Matrix(rows, k);
    const Activations clean(dtype, values, k);
    const auto finite = Multiply(scalar_, clean.view, w.matrix);
    for (const float poison : kPoisons) {
      const Activations x(dtype, Poisoned(values, k, poison), k);
      const auto expected = Multiply(scalar_, x.view, w.matrix);
      for (const int64_t now : {1, 3, 5, 14, 23, 40}) {
        const auto actual = Multiply(kernels_, x.Rows(0, now), w.matrix);

        EXPECT_TRUE(SameBitsOrNan(
            actual, {expected.begin(), expected.begin() + now * n}))
            << poison << " " << now;
        for (int64_t row = 0; row < now; ++row) {
          if (IsPoisoned(row)) continue;
          EXPECT_TRUE(std::equal(actual.begin() + row * n,
                                 actual.begin() + (row + 1) * n,
                                 finite.begin() + row * n))
              << poison << ", row " << row << " of " << now;
        }
      }
    }
  }
}

TEST_P(PathTest, AWeightThatIsNotFiniteStaysInItsOutput) {
  constexpr int64_t n = 33;
  constexpr int64_t k = 70;
  constexpr int64_t rows = 40;
  const std::vector<float> values = random_.Matrix(n, k);
  const PackedWeights clean(values, n, k);
  for (const auto dtype : kDtypes) {
    const Activations x(dtype, random_.Matrix(rows, k), k);
    const auto finite = Multiply(scalar_, x.view, clean.matrix);
    for (const float poison : kPoisons) {
      const PackedWeights w(Poisoned(values, k, poison), n, k);
      const auto expected = Multiply(scalar_, x.view, w.matrix);
      for (const int64_t now : {1, 3, 5, 14, 23, 40}) {
        const auto actual = Multiply(kernels_, x.Rows(0, now), w.matrix);

        EXPECT_TRUE(SameBitsOrNan(
            actual, {expected.begin(), expected.begin() + now * n}))
            << poison << " " << now;
        for (int64_t i = 0; i < now * n; ++i) {
          if (IsPoisoned(i % n)) continue;
          ASSERT_EQ(actual[static_cast<size_t>(i)],
                    finite[static_cast<size_t>(i)])
              << poison << ", value " << i;
        }
      }
    }
  }
}

// Tiles of f32 weights, as a KV cache in f32 holds them: two output blocks
// over `k_blocks` blocks of K. In two calls if `in_two`.
std::vector<float> MultiplyF32Tiles(const KernelTable& table,
                                    const std::vector<float>& x, int64_t cols,
                                    const std::vector<float>& tiles,
                                    bool in_two) {
  FlushDenormals();
  const GemmKernel& kernel = table.f32_weights;
  const auto rows = static_cast<int64_t>(x.size()) / cols;
  const int64_t k_blocks = NumInputBlocks(cols);
  std::vector<const void*> pointers;
  for (int64_t row = 0; row < rows; ++row) {
    pointers.push_back(x.data() + row * cols);
  }
  const int64_t padded = (rows + 31) / 32 * 32;
  auto prepared = *AlignedBuffer::Allocate(
      static_cast<size_t>(padded * k_blocks * kTileInputs * 4));
  std::vector<float> c(static_cast<size_t>(padded * 32), 7.0f);
  MultiplyArgs args;
  kernel.prepare(pointers.data(), rows, cols, k_blocks, prepared.data());
  args.x = prepared.data();
  args.x_k_blocks = k_blocks;
  args.rows = rows;
  args.w = tiles.data();
  args.w_end = tiles.data() + tiles.size();
  args.w_block_stride = k_blocks * kTileElements;
  args.num_blocks = 2;
  args.c = c.data();
  args.c_stride = 32;
  args.k_blocks = in_two ? 1 : k_blocks;
  if (kernel.enter != nullptr) kernel.enter();
  kernel.multiply(args);
  if (in_two) {
    args.first_k_block = 1;
    args.k_blocks = k_blocks - 1;
    args.w = tiles.data() + kTileElements;
    args.accumulate = true;
    kernel.multiply(args);
  }
  if (kernel.leave != nullptr) kernel.leave();
  c.resize(static_cast<size_t>(rows * 32));
  return c;
}

TEST_P(PathTest, F32WeightsThatAreHugeOrNotFiniteStayInTheirOutput) {
  constexpr int64_t cols = 70;
  constexpr int64_t rows = 7;
  const std::vector<float> clean = random_.Matrix(2 * 3, kTileElements);
  const std::vector<float> x = random_.Matrix(rows, cols);
  const auto finite = MultiplyF32Tiles(scalar_.table(), x, cols, clean, false);
  for (const float poison :
       {kPoisons[0], kPoisons[1], kPoisons[2], 0x1.fffffep127f, 0x1p-140f}) {
    // Outputs 3 and 18, inputs of every block and parity.
    for (const size_t at : {6, 7 + 32, 1024 + 6, 3 * 512 + 4, 5 * 512 + 5}) {
      std::vector<float> tiles = clean;
      tiles[at] = poison;
      for (const bool in_two : {false, true}) {
        const auto actual = MultiplyF32Tiles(Table(), x, cols, tiles, in_two);

        EXPECT_TRUE(SameBitsOrNan(
            actual, MultiplyF32Tiles(scalar_.table(), x, cols, tiles, false)))
            << poison << " at " << at;
        const auto output = static_cast<int64_t>(at / 1536 * 16 + at % 32 / 2);
        for (int64_t i = 0; i < rows * 32; ++i) {
          if (i % 32 == output) continue;
          ASSERT_EQ(actual[static_cast<size_t>(i)],
                    finite[static_cast<size_t>(i)])
              << poison << " at " << at << ", value " << i;
        }
      }
    }
  }
}

TEST_P(PathTest, RowKernelsHaveTheBitsOfTheScalarPath) {
  for (const int64_t cols : {1, 15, 16, 40, 64, 130}) {
    for (const auto dtype : kDtypes) {
      const std::vector<float> x = random_.Matrix(5, cols);
      const std::vector<float> delta = random_.Matrix(5, cols);
      const std::vector<float> weight = random_.Matrix(1, cols);
      const auto run = [&](Kernels& kernels) {
        std::vector<float> hidden = x;
        std::vector<float> y(x.size());
        Activations act(dtype, 5, cols);
        Activations rounded(dtype, 5, cols);
        kernels.AddRmsNorm(View(hidden, cols), ConstView(delta, cols), weight,
                           1e-5f, act.view, y.data());
        kernels.Round(ConstView(x, cols), rounded.view);
        kernels.Softmax(View(hidden, cols));
        kernels.Sigmoid(View(y, cols));
        std::vector<float> all = Values(act);
        for (const auto& part : {hidden, y, Values(rounded)}) {
          all.insert(all.end(), part.begin(), part.end());
        }
        return all;
      };

      EXPECT_TRUE(SameBits(run(kernels_), run(scalar_))) << cols;
    }
  }
}

TEST_P(PathTest, HeadNormRopeHasTheBitsOfTheScalarPath) {
  const std::vector<int32_t> positions = {0, 3, 1000};
  for (const int head_dim : {32, 40, 128}) {
    const RopeTable rope = RopeOf(1e6, head_dim - 2, 1001);
    const std::vector<float> weight = random_.Matrix(1, head_dim);
    const std::vector<float> heads = random_.Matrix(3, 4 * head_dim);
    const auto run = [&](Kernels& kernels) {
      std::vector<float> y = heads;
      kernels.HeadNormRope(View(y, 4 * head_dim), head_dim, weight, 1e-6f, rope,
                           positions);
      return y;
    };

    EXPECT_TRUE(SameBits(run(kernels_), run(scalar_)));
  }
}

TEST(KernelsTest, ThreadsDoNotShowInTheResults) {
  Random random(3);
  const Activations x(ActivationDtype::kBf16, random.Matrix(150, 256), 256);
  const PackedWeights w(random.Matrix(200, 256), 200, 256);
  const PackedWeights narrow(random.Matrix(16, 256), 16, 256);
  const auto run = [&](int num_threads) {
    ThreadPool pool(num_threads);
    Kernels kernels(BestCpuPath(), pool);
    std::vector<float> all(150 * 216);
    const Kernels::LinearPart parts[] = {
        {.w = w.matrix, .out = all.data(), .out_stride = 200},
        {.w = narrow.matrix, .out = all.data() + 150 * 200, .out_stride = 16}};
    kernels.LinearMany(x.view, parts);
    kernels.Softmax({std::span(all).first(150 * 200), 150, 200});
    return all;
  };
  const auto expected = run(1);

  EXPECT_TRUE(SameBits(run(2), expected));
  EXPECT_TRUE(SameBits(run(3), expected));
}

TEST(KernelsTest, NormsLeaveZerosInThePadding) {
  ThreadPool pool(1);
  Kernels kernels(BestCpuPath(), pool);
  Activations act(ActivationDtype::kBf16, std::vector<float>(64, 9.0f), 64);
  ActivationView narrow = act.view;
  narrow.cols = 40;
  const std::vector<float> x(40, 2.0f);

  kernels.RmsNorm({x, 1, 40}, std::vector<float>(40, 1.0f), 0, narrow, nullptr);

  EXPECT_EQ(act.At(0, 39), 1.0f);
  for (int64_t col = 40; col < 64; ++col) EXPECT_EQ(act.At(0, col), 0.0f);
}

}  // namespace
}  // namespace portolan
