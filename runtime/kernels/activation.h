#pragma once

#include <cstddef>
#include <cstdint>

namespace portolan {

// What activations and the KV cache hold: bf16, or f32 for the reference runs
// of --activations f32.
enum class ActivationDtype : uint8_t { kBf16, kF32 };

constexpr int64_t BytesOf(ActivationDtype dtype) {
  return dtype == ActivationDtype::kBf16 ? 2 : 4;
}

// `cols` rounded up to whole blocks of K, the least stride of activations.
constexpr int64_t PaddedCols(int64_t cols) { return (cols + 31) / 32 * 32; }

// Row-major activations that somebody else owns. `stride` counts elements and
// is at least PaddedCols(cols); kernels that write a view leave zeros between
// cols and PaddedCols(cols).
struct ActivationView {
  std::byte* data = nullptr;
  ActivationDtype dtype = ActivationDtype::kBf16;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  std::byte* Row(int64_t row) const {
    return data + row * stride * BytesOf(dtype);
  }
};

}  // namespace portolan
