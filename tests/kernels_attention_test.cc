#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "runtime/kernels/kernels.h"
#include "tests/kernel_test_util.h"

namespace portolan {
namespace {

struct AttentionShape {
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int64_t window;
};
const AttentionShape kShapes[] = {
    {4, 2, 32, 0}, {8, 2, 64, 0}, {4, 4, 128, 0}, {3, 1, 40, 0}, {8, 1, 32, 20},
};

// q, k and v of one sequence, and its pages.
class Problem {
 public:
  Problem(const AttentionShape& shape, int64_t length, ActivationDtype dtype,
          uint64_t seed)
      : shape_(shape),
        layout_{.num_kv_heads = shape.num_kv_heads,
                .head_dim = shape.head_dim,
                .dtype = dtype},
        random_(seed),
        q_(dtype, random_.Matrix(length, q_cols()), q_cols()),
        k_(random_.Matrix(length, kv_cols())),
        v_(random_.Matrix(length, kv_cols())) {
    const int64_t num_pages = (length + kPageTokens - 1) / kPageTokens;
    for (int64_t i = 0; i < num_pages; ++i) {
      buffers_.push_back(
          *AlignedBuffer::Allocate(static_cast<size_t>(layout_.PageBytes())));
      pages_.push_back(buffers_.back().data());
    }
  }

  int64_t q_cols() const { return int64_t{shape_.num_heads} * shape_.head_dim; }
  int64_t kv_cols() const {
    return int64_t{shape_.num_kv_heads} * shape_.head_dim;
  }

  // Appends and attends the sequence in chunks; all output rows.
  std::vector<float> Run(Kernels& kernels, int32_t chunk) {
    const auto length = static_cast<int32_t>(q_.view.rows);
    Activations out(layout_.dtype, length, q_cols());
    for (int32_t first = 0; first < length; first += chunk) {
      const int32_t rows = std::min(chunk, length - first);
      const Kernels::Sequence sequence = {
          .num_rows = rows, .first_position = first, .pages = pages_.data()};
      kernels.AppendKv(layout_, {&sequence, 1}, Rows(k_, first, rows),
                       Rows(v_, first, rows));
      kernels.Attention(layout_, {&sequence, 1}, q_.Rows(first, rows),
                        shape_.num_heads, kScale, shape_.window,
                        out.Rows(first, rows));
    }
    std::vector<float> values;
    for (int64_t row = 0; row < length; ++row) {
      for (int64_t col = 0; col < q_cols(); ++col) {
        values.push_back(out.At(row, col));
      }
    }
    return values;
  }

  // The same in double, from the values that the dtype holds.
  std::vector<double> Reference() const {
    std::vector<double> values;
    for (int64_t row = 0; row < q_.view.rows; ++row) {
      for (int32_t head = 0; head < shape_.num_heads; ++head) {
        AppendReference(row, head, values);
      }
    }
    return values;
  }

  // Fills the pages with finite rubbish, as an earlier owner leaves them.
  void SoilPages() {
    for (AlignedBuffer& buffer : buffers_) {
      for (Bf16& element : buffer.As<Bf16>()) {
        element = ToBf16(random_.Uniform() * 100);
      }
    }
  }

  void SetKey(int64_t row, float value) { At(k_, row) = value; }
  void SetValue(int64_t row, float value) { At(v_, row) = value; }

 private:
  static constexpr float kScale = 0.25f;

  MatrixView<const float> Rows(const std::vector<float>& values, int64_t first,
                               int64_t rows) const {
    return {std::span(values).subspan(static_cast<size_t>(first * kv_cols()),
                                      static_cast<size_t>(rows * kv_cols())),
            rows, kv_cols()};
  }

  // An element that differs from row to row.
  float& At(std::vector<float>& values, int64_t row) const {
    return values[static_cast<size_t>(row * kv_cols() + row * 7 % kv_cols())];
  }

  double Kv(const std::vector<float>& values, int64_t row, int64_t col) const {
    const float value = values[static_cast<size_t>(row * kv_cols() + col)];
    return layout_.dtype == ActivationDtype::kF32 ? value
                                                  : ToFloat(ToBf16(value));
  }

  void AppendReference(int64_t row, int32_t head,
                       std::vector<double>& values) const {
    const int64_t kv_head = head / (shape_.num_heads / shape_.num_kv_heads);
    const int64_t begin =
        shape_.window == 0 ? 0 : std::max<int64_t>(0, row - shape_.window + 1);
    std::vector<double> weights;
    double sum = 0;
    for (int64_t key = begin; key <= row; ++key) {
      double score = 0;
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        score += double{q_.At(row, head * shape_.head_dim + d)} *
                 Kv(k_, key, kv_head * shape_.head_dim + d);
      }
      weights.push_back(std::exp(score * kScale));
      sum += weights.back();
    }
    for (int64_t d = 0; d < shape_.head_dim; ++d) {
      double value = 0;
      for (int64_t key = begin; key <= row; ++key) {
        value += weights[static_cast<size_t>(key - begin)] *
                 Kv(v_, key, kv_head * shape_.head_dim + d);
      }
      values.push_back(value / sum);
    }
  }

  AttentionShape shape_;
  KvLayout layout_;
  Random random_;
  Activations q_;
  std::vector<float> k_;
  std::vector<float> v_;
  std::vector<AlignedBuffer> buffers_;
  std::vector<std::byte*> pages_;
};

double LargestError(const std::vector<float>& actual,
                    const std::vector<double>& expected) {
  double largest = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(actual[i] - expected[i]);
    if (!(error <= largest)) largest = error;  // also a NaN
  }
  return largest;
}

TEST(AttentionTest, ScalarAgreesWithDouble) {
  ThreadPool pool(1);
  Kernels kernels(CpuPath::kScalar, pool);
  for (const AttentionShape& shape : kShapes) {
    Problem f32(shape, 70, ActivationDtype::kF32, 1);
    Problem bf16(shape, 70, ActivationDtype::kBf16, 1);

    EXPECT_LT(LargestError(f32.Run(kernels, 70), f32.Reference()), 1e-4);
    EXPECT_LT(LargestError(bf16.Run(kernels, 70), bf16.Reference()), 0.2);
  }
}

TEST(AttentionTest, AnyChunksOfAPromptGiveTheBitsOfTokenByToken) {
  ThreadPool pool(2);
  Kernels kernels(BestCpuPath(), pool);
  for (const AttentionShape& shape : kShapes) {
    for (const auto dtype : {ActivationDtype::kBf16, ActivationDtype::kF32}) {
      const auto expected = Problem(shape, 150, dtype, 2).Run(kernels, 1);

      for (const int32_t chunk : {7, 64, 150}) {
        const auto actual = Problem(shape, 150, dtype, 2).Run(kernels, chunk);
        EXPECT_TRUE(SameBits(actual, expected)) << "chunks of " << chunk;
      }
    }
  }
}

TEST(AttentionTest, WhatAPageHeldBeforeDoesNotMatter) {
  ThreadPool pool(1);
  Kernels kernels(BestCpuPath(), pool);
  Problem clean(kShapes[1], 45, ActivationDtype::kBf16, 3);
  Problem soiled(kShapes[1], 45, ActivationDtype::kBf16, 3);
  const auto expected = clean.Run(kernels, 45);

  soiled.SoilPages();

  EXPECT_TRUE(SameBits(soiled.Run(kernels, 45), expected));
  EXPECT_TRUE(SameBits(soiled.Run(kernels, 1), expected));
}

TEST(AttentionTest, ASequenceDoesNotFeelTheOthersOfItsBatch) {
  ThreadPool pool(3);
  Kernels kernels(BestCpuPath(), pool);
  const KvLayout layout = {.num_kv_heads = 1, .head_dim = 32};
  Random random(4);
  const int64_t lengths[] = {40, 1, 97};
  const Activations q(ActivationDtype::kBf16, random.Matrix(138, 64), 64);
  const std::vector<float> k = random.Matrix(138, 32);
  std::vector<AlignedBuffer> buffers;
  std::vector<std::vector<std::byte*>> pages;
  std::vector<Kernels::Sequence> batch;
  int32_t first_row = 0;
  for (const int64_t length : lengths) {
    for (int i = 0; i < 4; ++i) {
      buffers.push_back(
          *AlignedBuffer::Allocate(static_cast<size_t>(layout.PageBytes())));
    }
    pages.push_back({});
    for (size_t i = buffers.size() - 4; i < buffers.size(); ++i) {
      pages.back().push_back(buffers[i].data());
    }
    batch.push_back(
        {.first_row = first_row, .num_rows = static_cast<int32_t>(length)});
    first_row += static_cast<int32_t>(length);
  }
  for (size_t i = 0; i < batch.size(); ++i) batch[i].pages = pages[i].data();
  const MatrixView<const float> kv(k, 138, 32);
  kernels.AppendKv(layout, batch, kv, kv);
  Activations together(ActivationDtype::kBf16, 138, 64);
  Activations alone(ActivationDtype::kBf16, 138, 64);

  kernels.Attention(layout, batch, q.view, 2, 1.0f, 0, together.view);
  for (const Kernels::Sequence& one : batch) {
    kernels.Attention(layout, {&one, 1}, q.view, 2, 1.0f, 0, alone.view);
  }

  for (int64_t row = 0; row < 138; ++row) {
    for (int64_t col = 0; col < 64; ++col) {
      ASSERT_EQ(together.At(row, col), alone.At(row, col));
    }
  }
}

class AttentionPathTest : public testing::TestWithParam<TestedPath> {};

INSTANTIATE_TEST_SUITE_P(Paths, AttentionPathTest,
                         testing::ValuesIn(TestedPaths()), NameOfPath);

TEST_P(AttentionPathTest, HasTheBitsOfTheScalarPath) {
  if (GetParam().table == nullptr) GTEST_SKIP() << GetParam().missing;
  ThreadPool pool(1);
  Kernels scalar(CpuPath::kScalar, pool);
  Kernels kernels(CpuPath::kScalar, *GetParam().table, pool);
  for (const AttentionShape& shape : kShapes) {
    for (const auto dtype : {ActivationDtype::kBf16, ActivationDtype::kF32}) {
      const auto expected = Problem(shape, 75, dtype, 5).Run(scalar, 75);

      EXPECT_TRUE(
          SameBits(Problem(shape, 75, dtype, 5).Run(kernels, 75), expected));
      EXPECT_TRUE(
          SameBits(Problem(shape, 75, dtype, 5).Run(kernels, 1), expected));
    }
  }
}

TEST_P(AttentionPathTest, HasTheNansOfTheScalarPathWhereKOrVIsHugeOrNotFinite) {
  if (GetParam().table == nullptr) GTEST_SKIP() << GetParam().missing;
  ThreadPool pool(1);
  Kernels scalar(CpuPath::kScalar, pool);
  Kernels kernels(CpuPath::kScalar, *GetParam().table, pool);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const auto dtype : {ActivationDtype::kBf16, ActivationDtype::kF32}) {
    for (const float bad :
         {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(),
          0x1.fep127f, 0x1p100f}) {
      for (const bool is_key : {true, false}) {
        const auto run = [&](Kernels& of, int32_t chunk) {
          Problem problem(kShapes[4], 75, dtype, 6);
          for (const int64_t row : {33, 60}) {
            if (is_key) {
              problem.SetKey(row, bad);
            } else {
              problem.SetValue(row, bad);
            }
          }
          return problem.Run(of, chunk);
        };
        for (const int32_t chunk : {75, 1}) {
          EXPECT_TRUE(SameBitsOrNan(run(kernels, chunk), run(scalar, chunk)))
              << bad << (is_key ? " in K" : " in V") << ", chunks of " << chunk;
        }
      }
    }
  }
}

// Windows around the size of a page, and more pages than are weighed at a time.
constexpr int64_t kLongLength = 600;
constexpr AttentionShape kLongShapes[] = {
    {2, 1, 32, 0}, {2, 1, 32, 32}, {2, 1, 32, 33}, {2, 1, 32, 545}};

TEST(AttentionTest, LongContextsAndWindowsAgreeWithDouble) {
  ThreadPool pool(1);
  Kernels kernels(BestCpuPath(), pool);
  for (const AttentionShape& shape : kLongShapes) {
    Problem f32(shape, kLongLength, ActivationDtype::kF32, 6);
    Problem bf16(shape, kLongLength, ActivationDtype::kBf16, 6);

    EXPECT_LT(LargestError(f32.Run(kernels, 250), f32.Reference()), 1e-4)
        << "window " << shape.window;
    EXPECT_LT(LargestError(bf16.Run(kernels, 250), bf16.Reference()), 0.1)
        << "window " << shape.window;
  }
}

TEST_P(AttentionPathTest, LongContextsAndWindowsHaveTheBitsOfTheScalarPath) {
  if (GetParam().table == nullptr) GTEST_SKIP() << GetParam().missing;
  ThreadPool pool(1);
  Kernels scalar(CpuPath::kScalar, pool);
  Kernels kernels(CpuPath::kScalar, *GetParam().table, pool);
  for (const AttentionShape& shape : kLongShapes) {
    const auto run = [&](Kernels& by, int32_t chunk) {
      return Problem(shape, kLongLength, ActivationDtype::kBf16, 6)
          .Run(by, chunk);
    };

    EXPECT_TRUE(SameBits(run(kernels, 170), run(scalar, 250)))
        << "window " << shape.window;
  }
}

}  // namespace
}  // namespace portolan
