#include "runtime/kernels/kernels.h"

#include <gtest/gtest.h>

#include "tests/kernel_test_util.h"

namespace portolan {
namespace {

// Sizes around the borders of blocks, register tiles and row groups.
struct Shape {
  int64_t m, n, k;
};
const Shape kShapes[] = {
    {1, 1, 1},    {1, 16, 32},   {2, 17, 33},   {3, 48, 100},
    {4, 40, 64},  {5, 31, 96},   {6, 64, 31},   {7, 33, 320},
    {13, 16, 64}, {16, 96, 96},  {17, 15, 160}, {31, 80, 65},
    {32, 32, 32}, {33, 112, 48}, {67, 50, 130}, {200, 33, 64}};

class PathTest : public testing::TestWithParam<TestedPath> {
 protected:
  void SetUp() override {
    if (GetParam().table == nullptr) GTEST_SKIP() << GetParam().missing;
  }

  ThreadPool pool_{1};
  Kernels scalar_{CpuPath::kScalar, pool_};
  Kernels kernels_{CpuPath::kScalar, Table(), pool_};

  static const KernelTable& Table() {
    const KernelTable* table = GetParam().table;
    return table == nullptr ? ScalarTable() : *table;
  }
};

INSTANTIATE_TEST_SUITE_P(Paths, PathTest, testing::ValuesIn(TestedPaths()),
                         NameOfPath);

std::vector<float> Multiply(Kernels& kernels, const Activations& x,
                            const PackedWeights& w, const float* bias) {
  std::vector<float> out(static_cast<size_t>(x.view.rows * w.matrix.n));
  kernels.Linear(x.view, w.matrix, bias, out.data(), w.matrix.n);
  return out;
}

TEST_P(PathTest, LinearHasTheBitsOfTheScalarPath) {
  for (const Shape& shape : kShapes) {
    for (const auto dtype : {ActivationDtype::kBf16, ActivationDtype::kF32}) {
      Random random(7);
      const Activations x(dtype, random.Matrix(shape.m, shape.k), shape.k);
      const PackedWeights w(random.Matrix(shape.n, shape.k), shape.n, shape.k);
      const std::vector<float> bias = random.Matrix(1, shape.n);

      const auto expected = Multiply(scalar_, x, w, bias.data());
      const auto actual = Multiply(kernels_, x, w, bias.data());

      EXPECT_TRUE(SameBits(actual, expected))
          << shape.m << "x" << shape.n << "x" << shape.k;
    }
  }
}

}  // namespace
}  // namespace portolan
