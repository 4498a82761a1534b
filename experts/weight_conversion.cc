#include "experts/weight_conversion.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "runtime/base/check.h"
#include "runtime/base/fp16.h"

namespace portolan {
namespace {

// By memcpy: a tensor may lie at any offset of its file.
template <typename Stored>
void Round(std::span<const std::byte> from, std::span<Bf16> to,
           float (*widen)(Stored)) {
  for (size_t i = 0; i < to.size(); ++i) {
    Stored value;
    std::memcpy(&value, from.data() + i * sizeof(Stored), sizeof(Stored));
    to[i] = ToBf16(widen(value));
  }
}

// The values of e4m3 (OCP, the finite kind): exponent bias 7, 0x7f and 0xff are
// NaN, there is no infinity.
constexpr float E4m3Value(uint32_t bits) {
  const uint32_t exponent = bits >> 3 & 15;
  const uint32_t mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::bit_cast<float>(0x7fc00000u);
  float value = exponent == 0 ? static_cast<float>(mantissa) * 0x1p-9f
                              : static_cast<float>(8 + mantissa) * 0x1p-10f;
  for (uint32_t i = 1; i <= exponent; ++i) value *= 2;
  return bits >> 7 == 0 ? value : -value;
}

constexpr std::array<float, 256> kE4m3 = [] {
  std::array<float, 256> values{};
  for (uint32_t bits = 0; bits < 256; ++bits) values[bits] = E4m3Value(bits);
  return values;
}();

float ScaleAt(const BlockScales& scales, std::span<const std::byte> bytes,
              int64_t index) {
  const std::byte* from = bytes.data() + index * BytesOf(scales.dtype);
  if (scales.dtype == TensorDtype::kF32) {
    float value = 0;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, from, sizeof(bits));
  return scales.dtype == TensorDtype::kBf16 ? ToFloat(Bf16{bits})
                                            : ToFloat(Fp16{bits});
}

Bf16 Scaled(std::byte e4m3, float scale) {
  const float product = kE4m3[static_cast<size_t>(e4m3)] * scale;
  const bool is_normal = std::abs(product) >= 0x1p-126f || std::isnan(product);
  return ToBf16(is_normal ? product : std::copysign(0.0f, product));
}

}  // namespace

bool ConvertBlocksToBf16(const BlockScales& scales,
                         std::span<const std::byte> scale_bytes,
                         std::span<const std::byte> from, int64_t first,
                         std::span<Bf16> to) {
  PORTOLAN_CHECK(from.size() == to.size());
  PORTOLAN_CHECK(scale_bytes.size() == scales.bytes);
  const auto count = static_cast<int64_t>(to.size());
  for (int64_t i = 0; i < count;) {
    const int64_t row = (first + i) / scales.cols;
    const int64_t col = (first + i) % scales.cols;
    const int64_t block = col / scales.block_cols;
    const int64_t block_end =
        std::min((block + 1) * scales.block_cols, scales.cols);
    const int64_t end = std::min(count, i + block_end - col);
    const float scale =
        ScaleAt(scales, scale_bytes,
                row / scales.block_rows * scales.blocks_per_row() + block);
    if (!std::isfinite(scale)) return false;
    for (; i < end; ++i) {
      to[static_cast<size_t>(i)] = Scaled(from[static_cast<size_t>(i)], scale);
    }
  }
  return true;
}

void ConvertToBf16(TensorDtype dtype, std::span<const std::byte> from,
                   std::span<Bf16> to) {
  PORTOLAN_CHECK(from.size() ==
                 to.size() * static_cast<size_t>(BytesOf(dtype)));
  switch (dtype) {
    case TensorDtype::kBf16:
      if (!to.empty() && static_cast<const void*>(to.data()) != from.data()) {
        std::memmove(to.data(), from.data(), from.size());
      }
      return;
    case TensorDtype::kF16:
      return Round<Fp16>(from, to, [](Fp16 value) { return ToFloat(value); });
    case TensorDtype::kF32:
      return Round<float>(from, to, [](float value) { return value; });
    case TensorDtype::kF8E4M3:
      break;
  }
  PORTOLAN_CHECK(false);  // needs scales: ConvertBlocksToBf16()
}

}  // namespace portolan
