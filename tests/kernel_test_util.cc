#include "tests/kernel_test_util.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace portolan {
namespace {

void WriteInteger(WeightFormat format, int q, int64_t k, int64_t output,
                  std::byte* tile) {
  if (format == WeightFormat::kInt8) {
    tile[k * kTileOutputs + output] = static_cast<std::byte>(q);
    return;
  }
  // Input 4 n + w: nibble n of word w, the last one in two's complement.
  const int64_t n = k / 4;
  std::byte& both = tile[(k % 4 * kTileOutputs + output) * 4 + n / 2];
  const int nibble = n == 7 ? q & 15 : q + 8;
  both |= static_cast<std::byte>(n % 2 == 0 ? nibble : nibble << 4);
}

testing::AssertionResult Same(const std::vector<float>& actual,
                              const std::vector<float>& expected,
                              bool any_nan) {
  if (actual.size() != expected.size()) {
    return testing::AssertionFailure()
           << actual.size() << " values, expected " << expected.size();
  }
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::bit_cast<uint32_t>(actual[i]) ==
        std::bit_cast<uint32_t>(expected[i])) {
      continue;
    }
    if (any_nan && std::isnan(actual[i]) && std::isnan(expected[i])) continue;
    return testing::AssertionFailure() << "value " << i << " is " << actual[i]
                                       << ", expected " << expected[i];
  }
  return testing::AssertionSuccess();
}

}  // namespace

std::vector<TestedPath> TestedPaths() {
  const auto native = [](CpuPath path, const KernelTable& table) {
    const std::string name(CpuPathName(path));
    return TestedPath{name, CpuSupports(path) ? &table : nullptr,
                      "this processor has no " + name};
  };
  return {{"scalar_without_fma", &ScalarTable(), ""},
          native(CpuPath::kAvx2, Avx2Table()),
          native(CpuPath::kAvx512, Avx512Table()),
          native(CpuPath::kAvx512Bf16, Avx512Bf16Table()),
          native(CpuPath::kAmx, AmxTable()),
          {"emulated_avx512", &EmulatedAvx512Table(), ""},
          {"emulated_avx512bf16", &EmulatedAvx512Bf16Table(), ""},
          {"emulated_amx", &EmulatedAmxTable(), ""}};
}

std::string NameOfPath(const testing::TestParamInfo<TestedPath>& info) {
  return info.param.name;
}

uint64_t Random::Next() {  // SplitMix64
  state_ += 0x9e3779b97f4a7c15u;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

float Random::Uniform() {
  return static_cast<float>(Next() >> 40) * 0x1p-23f - 1.0f;
}

std::vector<float> Random::Matrix(int64_t rows, int64_t cols) {
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (float& value : values) {
    const float uniform = Uniform();
    const uint64_t kind = Next() % 64;
    value = kind == 0   ? uniform * 0x1p-126f
            : kind == 1 ? uniform * 0x1p-70f
            : kind == 2 ? 0.0f
            : kind == 3 ? uniform * 30.0f
                        : uniform;
  }
  return values;
}

Activations::Activations(ActivationDtype dtype, int64_t rows, int64_t cols) {
  const int64_t stride = PaddedCols(cols);
  buffer_ = *AlignedBuffer::Allocate(static_cast<size_t>(
      std::max<int64_t>(rows, 1) * stride * BytesOf(dtype)));
  view = {.data = buffer_.data(),
          .dtype = dtype,
          .rows = rows,
          .cols = cols,
          .stride = stride};
}

Activations::Activations(ActivationDtype dtype,
                         const std::vector<float>& values, int64_t cols)
    : Activations(dtype, static_cast<int64_t>(values.size()) / cols, cols) {
  for (size_t i = 0; i < values.size(); ++i) {
    const auto row = static_cast<int64_t>(i) / cols;
    const auto col = static_cast<int64_t>(i) % cols;
    if (dtype == ActivationDtype::kF32) {
      reinterpret_cast<float*>(view.Row(row))[col] = values[i];
    } else {
      reinterpret_cast<Bf16*>(view.Row(row))[col] = ToBf16(values[i]);
    }
  }
}

float Activations::At(int64_t row, int64_t col) const {
  return view.dtype == ActivationDtype::kF32
             ? reinterpret_cast<const float*>(view.Row(row))[col]
             : ToFloat(reinterpret_cast<const Bf16*>(view.Row(row))[col]);
}

ActivationView Activations::Rows(int64_t begin, int64_t count) const {
  ActivationView rows = view;
  rows.data = view.Row(begin);
  rows.rows = count;
  return rows;
}

PackedWeights::PackedWeights(const std::vector<float>& values, int64_t n,
                             int64_t k) {
  buffer_ = *AlignedBuffer::Allocate(static_cast<size_t>(PackedBytes(n, k)));
  const std::vector<Bf16> rounded = RoundAll(values);
  PackMatrix(rounded.data(), k, n, k, buffer_.As<Bf16>().data());
  matrix = {.data = buffer_.As<Bf16>().data(), .n = n, .k = k};
}

QuantisedPair::QuantisedPair(WeightFormat format,
                             const std::vector<float>& values, int64_t n,
                             int64_t k) {
  Allocate(format, n, k);
  const PackedWeights source(values, n, k);
  ok = QuantiseTiles(format, static_cast<const Bf16*>(source.matrix.data),
                     NumOutputBlocks(n) * NumInputBlocks(k), quantised_.data(),
                     error);
  Dequantise();
}

QuantisedPair::QuantisedPair(WeightFormat format, int64_t n, int64_t k,
                             const ByPlace& q, const ByPlace& scale) {
  Allocate(format, n, k);
  const int64_t tile_bytes = TileBytes(format);
  std::memset(quantised_.data(), 0,
              static_cast<size_t>(PackedBytes(n, k, format)));
  for (int64_t output = 0; output < NumOutputBlocks(n) * kTileOutputs;
       ++output) {
    for (int64_t input = 0; input < NumInputBlocks(k) * kTileInputs; ++input) {
      const int64_t block = input / kTileInputs;
      std::byte* tile =
          quantised_.data() +
          (output / kTileOutputs * NumInputBlocks(k) + block) * tile_bytes;
      WriteInteger(format, output < n && input < k ? q(output, input) : 0,
                   input % kTileInputs, output % kTileOutputs, tile);
      tile[tile_bytes - kTileOutputs + output % kTileOutputs] =
          static_cast<std::byte>(scale(output, block));
    }
  }
  Dequantise();
}

void QuantisedPair::Allocate(WeightFormat format, int64_t n, int64_t k) {
  quantised_ =
      *AlignedBuffer::Allocate(static_cast<size_t>(PackedBytes(n, k, format)));
  exact_ = *AlignedBuffer::Allocate(static_cast<size_t>(PackedBytes(n, k)));
  quantised = {.data = quantised_.data(), .n = n, .k = k, .format = format};
  exact = {.data = exact_.data(), .n = n, .k = k};
}

void QuantisedPair::Dequantise() {
  DequantiseTiles(quantised.format, quantised_.data(),
                  NumOutputBlocks(quantised.n) * NumInputBlocks(quantised.k),
                  exact_.As<Bf16>().data());
}

std::vector<float> Multiply(Kernels& kernels, const ActivationView& x,
                            const PackedMatrix& w, const float* bias) {
  std::vector<float> out(static_cast<size_t>(x.rows * w.n));
  kernels.Linear(x, w, bias, out.data(), w.n);
  return out;
}

std::vector<Bf16> RoundAll(const std::vector<float>& values) {
  std::vector<Bf16> rounded(values.size());
  std::transform(values.begin(), values.end(), rounded.begin(), ToBf16);
  return rounded;
}

testing::AssertionResult SameBits(const std::vector<float>& actual,
                                  const std::vector<float>& expected) {
  return Same(actual, expected, /*any_nan=*/false);
}

testing::AssertionResult SameBitsOrNan(const std::vector<float>& actual,
                                       const std::vector<float>& expected) {
  return Same(actual, expected, /*any_nan=*/true);
}

}  // namespace portolan
