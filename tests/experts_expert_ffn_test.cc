#include <gtest/gtest.h>

#include <cmath>

#include "experts/expert_ffn.h"
#include "runtime/kernels/math.h"
#include "tests/kernel_test_util.h"

namespace portolan {
namespace {

constexpr int kNumExperts = 5;
constexpr int64_t kTokens = 40;

// Experts with random weights, and rows routed to them unevenly: expert 0 gets
// every token, expert 1 none.
class Problem {
 public:
  Problem(const ExpertShape& shape, ActivationDtype dtype)
      : shape_(shape),
        random_(5),
        x_(dtype, random_.Matrix(kTokens, shape.hidden), shape.hidden),
        selections_(kNumExperts) {
    for (int e = 0; e < kNumExperts; ++e) AddExpert();
    for (int32_t token = 0; token < kTokens; ++token) {
      for (const int expert : {0, 2 + token % 3}) {
        selections_[static_cast<size_t>(expert)].push_back(
            static_cast<int32_t>(row_of_.size()));
        row_of_.push_back(token);
      }
    }
  }

  std::vector<float> Run(Kernels& kernels) {
    ExpertFfn ffn(shape_, x_.view.dtype, kernels,
                  static_cast<int64_t>(row_of_.size()));
    std::vector<ExpertFfn::Work> work;
    for (size_t e = 0; e < kNumExperts; ++e) {
      work.push_back({.slot = slots_[e].data(), .selections = selections_[e]});
    }
    std::vector<float> out(row_of_.size() * static_cast<size_t>(shape_.hidden));
    ffn.Run(work, x_.view, row_of_, out.data(), shape_.hidden);
    return out;
  }

  // In double, h rounded as the dtype says.
  std::vector<double> Reference() const {
    std::vector<double> out(row_of_.size() *
                            static_cast<size_t>(shape_.hidden));
    for (size_t e = 0; e < kNumExperts; ++e) {
      for (const int32_t s : selections_[e]) {
        ExpertOutput(e, row_of_[static_cast<size_t>(s)],
                     out.data() + s * shape_.hidden);
      }
    }
    return out;
  }

 private:
  struct Weights {
    std::vector<Bf16> gate, up, down;
  };

  void AddExpert() {
    Weights w;
    const int64_t i = shape_.intermediate;
    const int64_t h = shape_.hidden;
    w.gate = RoundAll(random_.Matrix(i, h));
    w.up = RoundAll(random_.Matrix(i, h));
    w.down = RoundAll(random_.Matrix(h, i));
    slots_.push_back(
        *AlignedBuffer::Allocate(static_cast<size_t>(ExpertSlotBytes(shape_))));
    PackExpert(shape_, w.gate.data(), w.up.data(), w.down.data(),
               slots_.back().data());
    weights_.push_back(std::move(w));
  }

  double Dot(const std::vector<Bf16>& w, int64_t row,
             const std::vector<double>& x) const {
    double sum = 0;
    for (size_t k = 0; k < x.size(); ++k) {
      sum += x[k] * ToFloat(w[static_cast<size_t>(row) * x.size() + k]);
    }
    return sum;
  }

  void ExpertOutput(size_t expert, int64_t token, double* out) const {
    std::vector<double> x;
    for (int64_t k = 0; k < shape_.hidden; ++k) x.push_back(x_.At(token, k));
    std::vector<double> h;
    for (int64_t i = 0; i < shape_.intermediate; ++i) {
      const double gate = Dot(weights_[expert].gate, i, x);
      const double up = Dot(weights_[expert].up, i, x);
      const auto value = static_cast<float>(gate / (1 + std::exp(-gate)) * up);
      h.push_back(x_.view.dtype == ActivationDtype::kF32
                      ? value
                      : ToFloat(ToBf16(value)));
    }
    for (int64_t i = 0; i < shape_.hidden; ++i) {
      out[i] = Dot(weights_[expert].down, i, h);
    }
  }

  const ExpertShape shape_;
  Random random_;
  Activations x_;
  std::vector<Weights> weights_;
  std::vector<AlignedBuffer> slots_;
  std::vector<std::vector<int32_t>> selections_;
  std::vector<int32_t> row_of_;
};

const ExpertShape kShapes[] = {
    {.hidden = 64, .intermediate = 32},
    {.hidden = 100, .intermediate = 72},
    {.hidden = 192, .intermediate = 96},
};

double RelativeError(const std::vector<float>& actual,
                     const std::vector<double>& expected) {
  double error = 0;
  double size = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    error += std::pow(actual[i] - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  return std::sqrt(error / size);
}

TEST(ExpertFfnTest, ScalarAgreesWithDouble) {
  ThreadPool pool(1);
  Kernels kernels(CpuPath::kScalar, pool);
  for (const ExpertShape& shape : kShapes) {
    Problem f32(shape, ActivationDtype::kF32);
    Problem bf16(shape, ActivationDtype::kBf16);

    EXPECT_LT(RelativeError(f32.Run(kernels), f32.Reference()), 1e-5);
    EXPECT_LT(RelativeError(bf16.Run(kernels), bf16.Reference()), 1e-3);
  }
}

TEST(ExpertFfnTest, ThreadsDoNotShowInTheResults) {
  Problem problem(kShapes[2], ActivationDtype::kBf16);
  const auto run = [&](int num_threads) {
    ThreadPool pool(num_threads);
    Kernels kernels(BestCpuPath(), pool);
    return problem.Run(kernels);
  };
  const auto expected = run(1);

  EXPECT_TRUE(SameBits(run(2), expected));
  EXPECT_TRUE(SameBits(run(3), expected));
}

class ExpertFfnPathTest : public testing::TestWithParam<TestedPath> {};

INSTANTIATE_TEST_SUITE_P(Paths, ExpertFfnPathTest,
                         testing::ValuesIn(TestedPaths()), NameOfPath);

TEST_P(ExpertFfnPathTest, HasTheBitsOfTheScalarPath) {
  if (GetParam().table == nullptr) GTEST_SKIP() << GetParam().missing;
  ThreadPool pool(2);
  Kernels scalar(CpuPath::kScalar, pool);
  Kernels kernels(CpuPath::kScalar, *GetParam().table, pool);
  for (const ExpertShape& shape : kShapes) {
    for (const auto dtype : {ActivationDtype::kBf16, ActivationDtype::kF32}) {
      Problem problem(shape, dtype);

      EXPECT_TRUE(SameBits(problem.Run(kernels), problem.Run(scalar)));
    }
  }
}

TEST(ExpertSlotTest, IsPaddedToPagesOfMemory) {
  const ExpertShape shape = {.hidden = 1024, .intermediate = 512};

  EXPECT_EQ(ExpertSlotBytes(shape), 3 * 1024 * 512 * 2);
  EXPECT_EQ(ExpertSlotBytes({.hidden = 1, .intermediate = 1}), 4096);
}

}  // namespace
}  // namespace portolan
