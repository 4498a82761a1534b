#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "experts/expert_shape.h"
#include "experts/expert_slot.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/profile.h"
#include "runtime/kernels/kernels.h"

namespace portolan {

// The feed-forward network of experts over grouped rows, in two parallel
// regions for all experts of a call: gate and up with SwiGLU as epilogue, then
// down. Numerics as in kernels.h: silu(g) * u is rounded to the activation
// dtype once, results are f32. Thread-compatible.
class ExpertFfn {
 public:
  // `max_rows`: the most selections of one Run(). `kernels` and `profile`
  // (may be null) must outlive the object; slots hold weights of `format`.
  // Aborts if the system has no memory for max_rows * intermediate activations.
  ExpertFfn(const ExpertShape& shape, ActivationDtype dtype, Kernels& kernels,
            int64_t max_rows, Profile* profile = nullptr,
            WeightFormat format = WeightFormat::kBf16);

  // The rows of one expert: selections are indexes into `row_of` and rows of
  // `out`.
  struct Work {
    const std::byte* slot = nullptr;
    std::span<const int32_t> selections;
  };

  // For each selection s of each work: out[s] = the expert's output for
  // x[row_of[s]], not weighted by the gate; `out_stride` floats between rows.
  // A selection occurs at most once. Allocates nothing once it has seen as many
  // experts in one call.
  void Run(std::span<const Work> work, const ActivationView& x,
           std::span<const int32_t> row_of, float* out, int64_t out_stride);

  const ExpertShape& shape() const { return shape_; }

 private:
  const ExpertShape shape_;
  const ActivationDtype dtype_;
  const WeightFormat format_;
  Kernels& kernels_;
  const int64_t max_rows_;
  Profile* const profile_;
  AlignedBuffer h_;  // [max_rows, padded intermediate], by selection
  std::vector<int32_t> x_rows_;
  std::vector<Kernels::LinearGroup> groups_;
};

}  // namespace portolan
