#pragma once

#include "runtime/kernels/kernel_table.h"
#include "runtime/kernels/lanes.h"

// Everything but the matrix product, once for all paths. Internal to the
// path_*.cc files. Sums run in 16 virtual lanes and one fixed tree, nothing is
// contracted, divisions and roots are correctly rounded: so the width of a
// vector does not show in the results.

namespace portolan {
namespace {

inline Lanes LoadUpTo16(const float* from, int64_t n, float fill) {
  return n >= kLanes ? Load(from) : LoadSome(from, n, fill);
}

inline void StoreUpTo16(float* to, int64_t n, const Lanes& lanes) {
  if (n >= kLanes) {
    Store(to, lanes);
  } else {
    StoreSome(to, n, lanes);
  }
}

inline void RoundUpTo16(const Lanes& lanes, int64_t n, uint16_t* to) {
  if (n >= kLanes) {
    RoundLanes(lanes, to);
  } else {
    RoundSome(lanes, n, to);
  }
}

float SumOfSquares(const float* x, int64_t n) {
  Lanes sum = SplatLanes(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Lanes v = LoadUpTo16(x + i, n - i, 0.0f);
    for (int p = 0; p < kParts; ++p) sum.part[p] += v.part[p] * v.part[p];
  }
  return Sum(sum);
}

void RmsNorm(const float* x, const float* weight, int64_t n, float eps,
             float* y_f32, uint16_t* y_bf16) {
  const float mean = SumOfSquares(x, n) / static_cast<float>(n);
  const float inverse = 1.0f / __builtin_sqrtf(mean + eps);
  for (int64_t i = 0; i < n; i += kLanes) {
    Lanes v = LoadUpTo16(x + i, n - i, 0.0f);
    for (int p = 0; p < kParts; ++p) v.part[p] *= inverse;
    if (weight != nullptr) {
      const Lanes w = LoadUpTo16(weight + i, n - i, 0.0f);
      for (int p = 0; p < kParts; ++p) v.part[p] *= w.part[p];
    }
    if (y_f32 != nullptr) StoreUpTo16(y_f32 + i, n - i, v);
    if (y_bf16 != nullptr) RoundUpTo16(v, n - i, y_bf16 + i);
  }
}

void Add(float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Lanes v = LoadUpTo16(x + i, n - i, 0.0f);
    const Lanes w = LoadUpTo16(y + i, n - i, 0.0f);
    for (int p = 0; p < kParts; ++p) v.part[p] += w.part[p];
    StoreUpTo16(x + i, n - i, v);
  }
}

void Rotate(float* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t left = half - i;
    const Lanes a = LoadUpTo16(x + i, left, 0.0f);
    const Lanes b = LoadUpTo16(x + half + i, left, 0.0f);
    const Lanes c = LoadUpTo16(cos + i, left, 0.0f);
    const Lanes s = LoadUpTo16(sin + i, left, 0.0f);
    Lanes first;
    Lanes second;
    for (int p = 0; p < kParts; ++p) {
      first.part[p] = a.part[p] * c.part[p] - b.part[p] * s.part[p];
      second.part[p] = b.part[p] * c.part[p] + a.part[p] * s.part[p];
    }
    StoreUpTo16(x + i, left, first);
    StoreUpTo16(x + half + i, left, second);
  }
}

void RoundRow(const float* x, int64_t n, uint16_t* y) {
  for (int64_t i = 0; i < n; i += kLanes) {
    RoundUpTo16(LoadUpTo16(x + i, n - i, 0.0f), n - i, y + i);
  }
}

float LargestOf(const float* x, int64_t n) {
  const float lowest = -__builtin_inff();
  Lanes largest = SplatLanes(lowest);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Lanes v = LoadUpTo16(x + i, n - i, lowest);
    for (int p = 0; p < kParts; ++p) {
      largest.part[p] = Max(v.part[p], largest.part[p]);
    }
  }
  return Largest(largest);
}

void Divide(const float* x, int64_t n, float divisor, float* y_f32,
            uint16_t* y_bf16) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Lanes v = LoadUpTo16(x + i, n - i, 0.0f);
    for (int p = 0; p < kParts; ++p) v.part[p] /= divisor;
    if (y_f32 != nullptr) StoreUpTo16(y_f32 + i, n - i, v);
    if (y_bf16 != nullptr) RoundUpTo16(v, n - i, y_bf16 + i);
  }
}

void Softmax(float* x, int64_t n) {
  const float largest = LargestOf(x, n);
  Lanes sum = SplatLanes(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    Lanes v = LoadUpTo16(x + i, n - i, -__builtin_inff());
    for (int p = 0; p < kParts; ++p) {
      v.part[p] = ExpVec(v.part[p] - largest);
      sum.part[p] += v.part[p];
    }
    StoreUpTo16(x + i, n - i, v);
  }
  Divide(x, n, Sum(sum), x, nullptr);
}

void Sigmoid(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Lanes v = LoadUpTo16(x + i, n - i, 0.0f);
    for (int p = 0; p < kParts; ++p) v.part[p] = SigmoidVec(v.part[p]);
    StoreUpTo16(x + i, n - i, v);
  }
}

float AttentionWeights(float* scores, int64_t n, int64_t begin, int64_t end,
                       float scale, bool to_bf16) {
  for (int64_t i = 0; i < begin; ++i) scores[i] = -__builtin_inff();
  for (int64_t i = end; i < n; ++i) scores[i] = -__builtin_inff();
  for (int64_t i = 0; i < n; i += kLanes) {
    Lanes v = Load(scores + i);
    for (int p = 0; p < kParts; ++p) v.part[p] *= scale;
    Store(scores + i, v);
  }
  const float largest = LargestOf(scores, n);
  Lanes sum = SplatLanes(0.0f);
  auto* rounded = reinterpret_cast<uint16_t*>(scores);  // behind the reads
  for (int64_t i = 0; i < n; i += kLanes) {
    Lanes v = Load(scores + i);
    for (int p = 0; p < kParts; ++p) {
      v.part[p] = ExpVec(v.part[p] - largest);
      sum.part[p] += v.part[p];
    }
    if (to_bf16) {
      RoundLanes(v, rounded + i);
    } else {
      Store(scores + i, v);
    }
  }
  return Sum(sum);
}

void SwiGlu(const float* c, int64_t c_stride, int64_t rows, void* const* h,
            bool to_bf16) {
  for (int64_t row = 0; row < rows; ++row) {
    const Lanes gate = Load(c + row * c_stride);
    Lanes v = Load(c + row * c_stride + kLanes);
    for (int p = 0; p < kParts; ++p) v.part[p] *= SiluVec(gate.part[p]);
    if (to_bf16) {
      RoundLanes(v, static_cast<uint16_t*>(h[row]));
    } else {
      Store(static_cast<float*>(h[row]), v);
    }
  }
}

// The members of KernelTable that this file defines.
constexpr KernelTable WithRowKernels(KernelTable table) {
  table.rms_norm = RmsNorm;
  table.add = Add;
  table.rotate = Rotate;
  table.round = RoundRow;
  table.softmax = Softmax;
  table.sigmoid = Sigmoid;
  table.attention_weights = AttentionWeights;
  table.divide = Divide;
  table.swiglu = SwiGlu;
  return table;
}

}  // namespace
}  // namespace portolan
