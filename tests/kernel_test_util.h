#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/base/aligned_buffer.h"
#include "runtime/kernels/activation.h"
#include "runtime/kernels/cpu_path.h"
#include "runtime/kernels/kernel_table.h"
#include "runtime/kernels/kernels.h"
#include "runtime/kernels/packed_matrix.h"
#include "runtime/kernels/quantise.h"

namespace portolan {

// The sources of the AVX-512, AVX512-BF16 and AMX paths, compiled for any
// machine against plain C++ stand-ins of the instructions.
const KernelTable& EmulatedAvx512Table();
const KernelTable& EmulatedAvx512Bf16Table();
const KernelTable& EmulatedAmxTable();

// A table under test; a null table cannot run here, for the reason `missing`.
struct TestedPath {
  std::string name;
  const KernelTable* table = nullptr;
  std::string missing;
};

// Scalar without FMA, every native path, and the emulated ones.
std::vector<TestedPath> TestedPaths();

std::string NameOfPath(const testing::TestParamInfo<TestedPath>& info);

// Repeatable numbers of mixed magnitude, some of them denormal in bf16 or f32.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next();
  // Uniform in [-1, 1).
  float Uniform();
  std::vector<float> Matrix(int64_t rows, int64_t cols);

 private:
  uint64_t state_;
};

// Activations of their own: `values` rounded to the dtype.
class Activations {
 public:
  Activations(ActivationDtype dtype, int64_t rows, int64_t cols);
  Activations(ActivationDtype dtype, const std::vector<float>& values,
              int64_t cols);

  float At(int64_t row, int64_t col) const;
  // Rows [begin, begin + count), in order.
  ActivationView Rows(int64_t begin, int64_t count) const;

  ActivationView view;

 private:
  AlignedBuffer buffer_;
};

// A packed matrix of its own: `values` [n, k] rounded to bf16.
class PackedWeights {
 public:
  PackedWeights(const std::vector<float>& values, int64_t n, int64_t k);

  PackedMatrix matrix;

 private:
  AlignedBuffer buffer_;
};

// A quantised matrix of its own, and the bf16 matrix that it stands for.
class QuantisedPair {
 public:
  // Packs `values` [n, k], rounded to bf16.
  QuantisedPair(WeightFormat format, const std::vector<float>& values,
                int64_t n, int64_t k);
  // Written byte by byte, as quantise.h tells: `q` of an output and an input,
  // `scale` the byte of an output and a block of inputs.
  using ByPlace = std::function<int(int64_t output, int64_t input)>;
  QuantisedPair(WeightFormat format, int64_t n, int64_t k, const ByPlace& q,
                const ByPlace& scale);

  PackedMatrix quantised;
  PackedMatrix exact;
  // What QuantiseTiles() said.
  QuantisationError error;
  bool ok = true;

 private:
  void Allocate(WeightFormat format, int64_t n, int64_t k);
  void Dequantise();

  AlignedBuffer quantised_;
  AlignedBuffer exact_;
};

// [x.rows, w.n].
std::vector<float> Multiply(Kernels& kernels, const ActivationView& x,
                            const PackedMatrix& w, const float* bias = nullptr);

std::vector<Bf16> RoundAll(const std::vector<float>& values);

// True if both have the same bits.
testing::AssertionResult SameBits(const std::vector<float>& actual,
                                  const std::vector<float>& expected);

// The same, but one NaN is as good as another.
testing::AssertionResult SameBitsOrNan(const std::vector<float>& actual,
                                       const std::vector<float>& expected);

}  // namespace portolan
