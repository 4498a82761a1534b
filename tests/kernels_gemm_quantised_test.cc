#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <set>
#include <string>

#include "runtime/kernels/kernels.h"
#include "tests/kernel_test_util.h"

// Products with quantised weights where kernels change: at the ends of scales,
// integers and x, at the numbers of rows that another kernel or another chunk
// begins with, and beside values that are not finite.

namespace portolan {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

constexpr WeightFormat kFormats[] = {WeightFormat::kInt8, WeightFormat::kInt4};

// What a group holds (weight_format.h).
struct Ends {
  int least_q;
  int greatest_q;
  int least_scale;
  int greatest_scale;
};

Ends EndsOf(WeightFormat format) {
  return format == WeightFormat::kInt8 ? Ends{-127, 127, 87, 167}
                                       : Ends{-8, 7, 0, 255};
}

// Small scales of no special kind: from 2^-9 to 2^-6 or so.
int OrdinaryScale(WeightFormat format, uint64_t random) {
  const auto i = static_cast<int>(random % 4);
  return format == WeightFormat::kInt8 ? 118 + i : 120 + 7 * i;
}

enum class Scales { kLeast, kGreatest, kMixed };

int ChooseScale(WeightFormat format, Scales scales, Random& random) {
  const Ends ends = EndsOf(format);
  const uint64_t kind = random.Next() % 4;
  if (scales == Scales::kLeast) return ends.least_scale;
  if (scales == Scales::kGreatest) return ends.greatest_scale;
  if (kind == 0) return ends.least_scale;
  if (kind == 1) return ends.greatest_scale;
  return OrdinaryScale(format, random.Next());
}

// Every third integer is 0 or an extreme one.
int ChooseInteger(WeightFormat format, Random& random) {
  const Ends ends = EndsOf(format);
  const int special[] = {0, ends.least_q, ends.greatest_q};
  const uint64_t kind = random.Next() % 9;
  if (kind < 3) return special[kind];
  const auto count = static_cast<uint64_t>(ends.greatest_q - ends.least_q + 1);
  return ends.least_q + static_cast<int>(random.Next() % count);
}

QuantisedPair Matrix(WeightFormat format, Scales scales, int64_t n, int64_t k,
                     Random& random) {
  return QuantisedPair(
      format, n, k,
      [&](int64_t, int64_t) { return ChooseInteger(format, random); },
      // One for the whole block: it is asked for with every input.
      [&, seed = random.Next()](int64_t output, int64_t block) {
        Random of_group(seed + static_cast<uint64_t>(output * 1000 + block));
        return ChooseScale(format, scales, of_group);
      });
}

// x of either sign between two sizes; every seventh is 0 or -0.
struct Sizes {
  float least;
  float greatest;
};

std::vector<float> Inputs(const Sizes& sizes, int64_t count, Random& random) {
  // By their bits, which are in the order of floats: as many of each octave,
  // and no arithmetic that would flush denormals.
  const auto least = std::bit_cast<uint32_t>(sizes.least);
  const auto greatest = std::bit_cast<uint32_t>(sizes.greatest);
  std::vector<float> values;
  while (static_cast<int64_t>(values.size()) < count) {
    const uint64_t kind = random.Next() % 14;
    const uint64_t sign = random.Next() % 2 << 31;
    const uint64_t size = kind < 2   ? 0
                          : kind < 4 ? least
                          : kind < 6
                              ? greatest
                              : least + random.Next() % (greatest - least + 1);
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(sign | size)));
  }
  return values;
}

constexpr Sizes kOrdinary = {0x1p-9f, 8};

// A product may put its scales last where all x are in this window.
constexpr Sizes kWindow = {0x1p-60f, 0x1p60f};
constexpr float kBelowWindow = 0x1.fep-61f;  // the next bf16
constexpr float kAboveWindow = 0x1.02p60f;

std::vector<float> FirstRows(const std::vector<float>& values, int64_t rows,
                             int64_t cols) {
  return {values.begin(), values.begin() + rows * cols};
}

class GemmQuantisedTest : public testing::TestWithParam<TestedPath> {
 protected:
  void SetUp() override {
    if (GetParam().table == nullptr) GTEST_SKIP() << GetParam().missing;
  }
  static const KernelTable& Table() {
    const KernelTable* table = GetParam().table;
    return table == nullptr ? ScalarTable() : *table;
  }

  // Of the last 1, 3, ... rows of x, which other kernels and chunks take.
  void ExpectTheBitsOfTheBf16Matrix(const QuantisedPair& w,
                                    const std::vector<float>& values,
                                    const std::string& what) {
    const int64_t n = w.exact.n;
    const Activations x(ActivationDtype::kBf16, values, w.exact.k);
    const auto expected = Multiply(scalar_, x.view, w.exact);
    for (const int64_t rows : {1, 3, 5, 13, 21, 40}) {
      const auto actual =
          Multiply(kernels_, x.Rows(x.view.rows - rows, rows), w.quantised);
      EXPECT_TRUE(SameBitsOrNan(
          actual,
          std::vector<float>(expected.end() - rows * n, expected.end())))
          << WeightFormatName(w.quantised.format) << ", " << what << ", "
          << rows << " rows";
    }
  }

  ThreadPool pool_{1};
  Kernels scalar_{CpuPath::kScalar, pool_};
  Kernels kernels_{CpuPath::kScalar, Table(), pool_};
  Random random_{31};
};

INSTANTIATE_TEST_SUITE_P(Paths, GemmQuantisedTest,
                         testing::ValuesIn(TestedPaths()), NameOfPath);

TEST_P(GemmQuantisedTest, ScalesAtBothEndsHaveTheBitsOfTheBf16Matrix) {
  constexpr int64_t n = 33;
  constexpr int64_t k = 70;
  constexpr int64_t rows = 40;
  // Beside the window, sizes whose products are denormal, or their last bits,
  // with the least scales, or overflow with the greatest.
  const Sizes kinds[] = {kOrdinary,
                         kWindow,
                         {0x1p-60f, 0x1p-58f},
                         {0x1p58f, 0x1p60f},
                         {kBelowWindow, kBelowWindow},
                         {kAboveWindow, kAboveWindow},
                         {0x1p-133f, 0x1.fcp-127f},  // denormals
                         {0x1p-133f, 0x1p-120f},
                         {0x1p-126f, 0x1p-124f},
                         {0x1p-103f, 0x1p-99f},  // kInt4
                         {0x1p-97f, 0x1p-94f},
                         {0x1p-88f, 0x1p-84f},  // kInt8
                         {0x1p-82f, 0x1p-79f},
                         {1, 0x1p80f},
                         {0x1p74f, 0x1p77f},  // kInt8
                         {0x1p77f, 0x1p82f},
                         {0x1p108f, 0x1p114f},  // kInt4
                         {0x1p114f, 0x1p127f},
                         {0x1p-133f, 0x1.fep127f}};
  for (const WeightFormat format : kFormats) {
    for (const Scales scales :
         {Scales::kLeast, Scales::kGreatest, Scales::kMixed}) {
      const QuantisedPair w = Matrix(format, scales, n, k, random_);
      for (const Sizes& sizes : kinds) {
        const auto values = Inputs(sizes, rows * k, random_);
        ExpectTheBitsOfTheBf16Matrix(w, values,
                                     testing::PrintToString(sizes.least));
      }
      ExpectTheBitsOfTheBf16Matrix(w, std::vector<float>(rows * k), "zeros");
      ExpectTheBitsOfTheBf16Matrix(w, std::vector<float>(rows * k, -0.0f),
                                   "negative zeros");
    }
  }
}

TEST_P(GemmQuantisedTest, OneInputOutsideTheWindowIsSeenWhereverItLies) {
  constexpr int64_t k = 70;
  for (const WeightFormat format : kFormats) {
    const QuantisedPair w = Matrix(format, Scales::kMixed, 33, k, random_);
    // Products of the first two with the least scale are denormal, of the last
    // two with the greatest infinite; kernels agree anyway.
    for (const float outside : {0x1p-133f, 0x1p-125f, 0x1p-90f, kBelowWindow,
                                kAboveWindow, 0x1p85f, 0x1.fep127f}) {
      for (const int64_t at : {0, 31, 32, 63, 64, 69}) {
        auto values = Inputs(kWindow, 40 * k, random_);
        values[static_cast<size_t>(39 * k + at)] = outside;
        ExpectTheBitsOfTheBf16Matrix(
            w, values,
            testing::PrintToString(outside) + " at " + std::to_string(at));
      }
    }
  }
}

TEST_P(GemmQuantisedTest, EveryIntegerCountsAtEveryPlaceOfATile) {
  constexpr int64_t n = 16;
  constexpr int64_t k = 32;
  std::vector<float> unit(k * k);
  for (size_t i = 0; i < k; ++i) unit[i * k + i] = 1;
  const Activations x(ActivationDtype::kBf16, unit, k);
  for (const WeightFormat format : kFormats) {
    const Ends ends = EndsOf(format);
    const int count = ends.greatest_q - ends.least_q + 1;
    const int num_scales = ends.greatest_scale - ends.least_scale + 1;
    for (int shift = 0; shift < count; ++shift) {
      const auto place = [&](int64_t output, int64_t input) {
        return static_cast<int>(output * k + input) + shift;
      };
      const QuantisedPair w(
          format, n, k,
          [&](int64_t output, int64_t input) {
            return ends.least_q + place(output, input) % count;
          },
          [&](int64_t output, int64_t) {
            return ends.least_scale + place(output, 0) * 5 % num_scales;
          });
      // Row i is input i of every output.
      const auto expected = Multiply(scalar_, x.view, w.exact);
      for (const int64_t rows : {1, 4, 12, 32}) {
        for (int64_t row = 0; row < k; row += rows) {
          const int64_t now = std::min(rows, k - row);
          const auto actual = Multiply(kernels_, x.Rows(row, now), w.quantised);
          ASSERT_TRUE(SameBits(
              actual, std::vector<float>(expected.begin() + row * n,
                                         expected.begin() + (row + now) * n)))
              << WeightFormatName(format) << ", shift " << shift << ", row "
              << row << " of " << rows;
        }
      }
    }
  }
}

TEST_P(GemmQuantisedTest, ExtremeIntegersCountInEveryBlockAndKernel) {
  constexpr int64_t n = 33;
  constexpr int64_t k = 64;
  for (const WeightFormat format : kFormats) {
    const Ends ends = EndsOf(format);
    const int integers[] = {0, ends.least_q, 1, ends.greatest_q, -1};
    for (int64_t shift = 0; shift < 5; ++shift) {
      const QuantisedPair w(
          format, n, k,
          [&](int64_t output, int64_t input) {
            return integers[(output + input + shift) % 5];
          },
          [&](int64_t output, int64_t block) {
            return OrdinaryScale(format, static_cast<uint64_t>(output + block));
          });
      // In the window of x and out of it; products are exact in both.
      for (const float size : {1.0f, 0x1p-61f}) {
        std::vector<float> unit(k * k);
        for (size_t i = 0; i < k; ++i) unit[i * k + i] = size;
        const Activations x(ActivationDtype::kBf16, unit, k);
        const auto expected = Multiply(scalar_, x.view, w.exact);
        for (const int64_t rows : {1, 2, 3, 4, 5, 9, 12, 21, 32, 64}) {
          for (int64_t row = 0; row < k; row += rows) {
            const int64_t now = std::min(rows, k - row);
            ASSERT_TRUE(SameBits(
                Multiply(kernels_, x.Rows(row, now), w.quantised),
                std::vector<float>(expected.begin() + row * n,
                                   expected.begin() + (row + now) * n)))
                << WeightFormatName(format) << ", shift " << shift << ", row "
                << row << " of " << rows << ", x " << size;
          }
        }
      }
    }
  }
}

// Those around which a table changes kernels, register tiles or chunks.
std::set<int64_t> EdgesOfRows(const KernelTable& table) {
  // Register tiles and tables of the pair kernels, tiles of AMX, a chunk.
  std::set<int64_t> edges = {4, 12, 20, 24, 32, 96};
  edges.insert(table.many_rows);
  for (const QuantisedKernel* kernel : {&table.int8, &table.int4}) {
    edges.insert(kernel->few_rows);
    edges.insert(kernel->few.row_group);
  }
  edges.insert(table.bf16_few.row_group);
  edges.insert(table.bf16_many.row_group);
  std::set<int64_t> rows;
  for (const int64_t edge : edges) {
    if (edge > 96) continue;  // as good as none
    rows.insert({edge - 1, edge, edge + 1});
  }
  rows.insert({192, 193});
  rows.erase(0);
  rows.erase(-1);
  return rows;
}

TEST_P(GemmQuantisedTest, NeitherThresholdsNorChunksOfRowsShow) {
  struct Size {
    int64_t n, k;
  };
  const std::set<int64_t> counts = EdgesOfRows(Table());
  for (const WeightFormat format : kFormats) {
    for (const Size size : {Size{17, 1}, Size{1, 31}, Size{33, 33},
                            Size{15, 320}, Size{31, 257}}) {
      for (const Sizes& sizes : {kOrdinary, Sizes{0x1p-61f, 0x1p-59f}}) {
        const QuantisedPair w =
            Matrix(format, Scales::kMixed, size.n, size.k, random_);
        const Activations x(ActivationDtype::kBf16,
                            Inputs(sizes, 193 * size.k, random_), size.k);
        const auto expected = Multiply(scalar_, x.view, w.exact);
        for (const int64_t rows : counts) {
          EXPECT_TRUE(SameBits(Multiply(kernels_, x.Rows(0, rows), w.quantised),
                               FirstRows(expected, rows, size.n)))
              << WeightFormatName(format) << " " << rows << "x" << size.n << "x"
              << size.k;
        }
      }
    }
  }
}

TEST_P(GemmQuantisedTest, ChunksThatALongKMakesShorterDoNotShow) {
  constexpr int64_t k = 4100;
  for (const WeightFormat format : kFormats) {
    const QuantisedPair w = Matrix(format, Scales::kMixed, 17, k, random_);
    const Activations x(ActivationDtype::kBf16,
                        Inputs(kOrdinary, 49 * k, random_), k);
    const auto expected = Multiply(scalar_, x.view, w.exact);
    for (const int64_t rows : {1, 25, 49}) {
      EXPECT_TRUE(SameBits(Multiply(kernels_, x.Rows(0, rows), w.quantised),
                           FirstRows(expected, rows, 17)))
          << WeightFormatName(format) << " " << rows;
    }
  }
}

TEST_P(GemmQuantisedTest, ChunksOfF32RowsDoNotShow) {
  for (const WeightFormat format : kFormats) {
    const QuantisedPair w = Matrix(format, Scales::kMixed, 33, 300, random_);
    const Activations x(ActivationDtype::kF32, random_.Matrix(97, 300), 300);
    const auto expected = Multiply(scalar_, x.view, w.exact);
    for (const int64_t rows : {1, 2, 7, 96, 97}) {
      EXPECT_TRUE(SameBits(Multiply(kernels_, x.Rows(0, rows), w.quantised),
                           FirstRows(expected, rows, 33)))
          << WeightFormatName(format) << " " << rows;
    }
  }
}

// Rows of each expert of one call.
constexpr int64_t kGroupRows[] = {1, 0, 98, 3, 21, 5, 13, 2};
constexpr int64_t kGroupedRows = 143;

// Experts of one format with unlike numbers of rows, in no order.
class Experts {
 public:
  Experts(WeightFormat format, int64_t n, int64_t k, Random& random)
      : rows_(kGroupedRows), outs_(kGroupedRows) {
    for (size_t i = 0; i < std::size(kGroupRows); ++i) {
      matrices_.push_back(Matrix(format, Scales::kMixed, n, k, random));
    }
    // 29 and 40 have no factor in common with the number of rows.
    for (int32_t i = 0; i < kGroupedRows; ++i) {
      rows_[static_cast<size_t>(i)] = i * 29 % kGroupedRows;
      outs_[static_cast<size_t>(i)] = i * 40 % kGroupedRows;
    }
  }

  std::vector<Kernels::LinearGroup> Groups(bool exact) const {
    std::vector<Kernels::LinearGroup> groups;
    size_t first = 0;
    for (size_t i = 0; i < matrices_.size(); ++i) {
      const auto count = static_cast<size_t>(kGroupRows[i]);
      groups.push_back(
          {.w = exact ? matrices_[i].exact : matrices_[i].quantised,
           .x_rows = std::span(rows_).subspan(first, count),
           .out_rows = std::span(outs_).subspan(first, count)});
      first += count;
    }
    return groups;
  }

 private:
  std::vector<QuantisedPair> matrices_;
  std::vector<int32_t> rows_;
  std::vector<int32_t> outs_;
};

std::vector<float> Linear(Kernels& kernels, const ActivationView& x,
                          const std::vector<Kernels::LinearGroup>& groups) {
  std::vector<float> out(
      static_cast<size_t>(kGroupedRows * groups.front().w.n));
  kernels.GroupedLinear(x, groups, out.data(), groups.front().w.n);
  return out;
}

std::vector<float> SwiGlu(Kernels& kernels, const ActivationView& x,
                          const std::vector<Kernels::LinearGroup>& groups,
                          ActivationDtype dtype = ActivationDtype::kBf16) {
  const int64_t cols = groups.front().w.n / 2;
  const Activations h(dtype, kGroupedRows, cols);
  kernels.GroupedSwiGlu(x, groups, h.view);
  std::vector<float> values;
  for (int64_t row = 0; row < kGroupedRows; ++row) {
    for (int64_t col = 0; col < cols; ++col) values.push_back(h.At(row, col));
  }
  return values;
}

TEST_P(GemmQuantisedTest, GroupsOfUnlikeRowsHaveTheBitsOfTheBf16Matrices) {
  ThreadPool threads(3);
  Kernels parallel(CpuPath::kScalar, Table(), threads);
  for (const WeightFormat format : kFormats) {
    for (const int64_t k : {31, 320}) {
      const Experts linear(format, 33, k, random_);
      const Experts swiglu(format, 96, k, random_);
      for (const Sizes& sizes : {kOrdinary, Sizes{0x1p-61f, 0x1p-59f}}) {
        const Activations x(ActivationDtype::kBf16,
                            Inputs(sizes, kGroupedRows * k, random_), k);
        const auto sums = Linear(scalar_, x.view, linear.Groups(true));
        const auto gated = SwiGlu(scalar_, x.view, swiglu.Groups(true));
        for (Kernels* kernels : {&kernels_, &parallel}) {
          EXPECT_TRUE(
              SameBits(Linear(*kernels, x.view, linear.Groups(false)), sums))
              << WeightFormatName(format) << " " << k;
          EXPECT_TRUE(
              SameBits(SwiGlu(*kernels, x.view, swiglu.Groups(false)), gated))
              << WeightFormatName(format) << " " << k;
        }
      }
    }
  }
}

// Rows among which some have one input that is not finite or soon will not be.
constexpr int64_t kPoisonedRows[] = {0, 7, 19, 20, 38};

std::vector<float> Poisoned(std::vector<float> values, int64_t k,
                            float poison) {
  for (const int64_t row : kPoisonedRows) {
    values[static_cast<size_t>(row * k + row * 11 % k)] = poison;
  }
  return values;
}

TEST_P(GemmQuantisedTest, WhatIsNotFiniteStaysInItsRow) {
  constexpr int64_t n = 33;
  constexpr int64_t k = 70;
  constexpr int64_t rows = 40;
  for (const WeightFormat format : kFormats) {
    const QuantisedPair w = Matrix(format, Scales::kMixed, n, k, random_);
    for (const ActivationDtype dtype :
         {ActivationDtype::kBf16, ActivationDtype::kF32}) {
      const auto values = Inputs(kWindow, rows * k, random_);
      const Activations clean(dtype, values, k);
      const auto finite = Multiply(scalar_, clean.view, w.exact);
      for (const float poison : {kInfinity, -kInfinity, kNan, 0x1.fep127f}) {
        const Activations x(dtype, Poisoned(values, k, poison), k);
        const auto expected = Multiply(scalar_, x.view, w.exact);
        for (const int64_t now : {1, 3, 8, 13, 21, 40}) {
          const auto actual = Multiply(kernels_, x.Rows(0, now), w.quantised);
          EXPECT_TRUE(SameBitsOrNan(actual, FirstRows(expected, now, n)))
              << WeightFormatName(format) << ", " << poison << ", " << now;
        }
        const auto actual = Multiply(kernels_, x.view, w.quantised);
        for (int64_t row = 0; row < rows; ++row) {
          if (std::count(std::begin(kPoisonedRows), std::end(kPoisonedRows),
                         row) > 0) {
            continue;
          }
          const auto begin = static_cast<ptrdiff_t>(row * n);
          EXPECT_TRUE(
              SameBits({actual.begin() + begin, actual.begin() + begin + n},
                       {finite.begin() + begin, finite.begin() + begin + n}))
              << WeightFormatName(format) << ", " << poison << ", row " << row;
        }
      }
    }
  }
}

TEST_P(GemmQuantisedTest, ARowHasTheBitsOfTheRowAloneAmongOthersOfAnySize) {
  constexpr int64_t n = 33;
  constexpr int64_t k = 70;
  const Sizes kinds[] = {kOrdinary,
                         kWindow,
                         {0x1p-133f, 0x1p-120f},
                         {0x1p-91f, 0x1p-85f},
                         {0x1p74f, 0x1p127f},
                         {kInfinity, kInfinity}};
  for (const WeightFormat format : kFormats) {
    const QuantisedPair w = Matrix(format, Scales::kMixed, n, k, random_);
    std::vector<float> values;
    for (int64_t row = 0; row < 42; ++row) {
      const auto of_row = Inputs(kinds[row % 6], k, random_);
      values.insert(values.end(), of_row.begin(), of_row.end());
    }
    const Activations x(ActivationDtype::kBf16, values, k);

    std::vector<float> alone;
    for (int64_t row = 0; row < 42; ++row) {
      const auto of_row = Multiply(kernels_, x.Rows(row, 1), w.quantised);
      alone.insert(alone.end(), of_row.begin(), of_row.end());
    }

    for (const int64_t batch : {2, 3, 5, 12, 20, 42}) {
      EXPECT_TRUE(
          SameBitsOrNan(Multiply(kernels_, x.Rows(0, batch), w.quantised),
                        FirstRows(alone, batch, n)))
          << WeightFormatName(format) << ", " << batch << " rows";
    }
  }
}

TEST_P(GemmQuantisedTest, GatesThatAreNotFiniteGiveWhatTheScalarPathGives) {
  for (const WeightFormat format : kFormats) {
    const Experts experts(format, 64, 70, random_);
    for (const float poison : {kInfinity, -kInfinity, kNan, 0x1.fep127f}) {
      const auto values =
          Poisoned(Inputs(kOrdinary, kGroupedRows * 70, random_), 70, poison);
      const Activations x(ActivationDtype::kBf16, values, 70);
      for (const ActivationDtype dtype :
           {ActivationDtype::kBf16, ActivationDtype::kF32}) {
        EXPECT_TRUE(SameBitsOrNan(
            SwiGlu(kernels_, x.view, experts.Groups(false), dtype),
            SwiGlu(scalar_, x.view, experts.Groups(true), dtype)))
            << WeightFormatName(format) << ", " << poison;
      }
    }
  }
}

TEST(GemmQuantisedThreadsTest, ThreadsDoNotShowInTheResults) {
  Random random(5);
  for (const WeightFormat format : kFormats) {
    const QuantisedPair w = Matrix(format, Scales::kMixed, 200, 256, random);
    const Activations x(ActivationDtype::kBf16,
                        Inputs(kWindow, 150 * 256, random), 256);
    const auto run = [&](int num_threads, int64_t rows) {
      ThreadPool pool(num_threads);
      Kernels kernels(BestCpuPath(), pool);
      return Multiply(kernels, x.Rows(0, rows), w.quantised);
    };
    for (const int64_t rows : {1, 5, 150}) {
      const auto expected = run(1, rows);
      EXPECT_TRUE(SameBits(run(2, rows), expected));
      EXPECT_TRUE(SameBits(run(3, rows), expected));
    }
  }
}

}  // namespace
}  // namespace portolan
