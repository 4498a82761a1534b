#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/matrix_view.h"
#include "runtime/base/status_macros.h"
#include "runtime/kernels/kernels.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/forward.h"
#include "runtime/model/forward_observer.h"

namespace portolan {

// A growable-once matrix of f32: [max_rows, cols].
class FloatRows {
 public:
  absl::Status Allocate(int64_t max_rows, int64_t cols) {
    cols_ = cols;
    PORTOLAN_ASSIGN_OR_RETURN(
        buffer_, AlignedBuffer::Allocate(static_cast<size_t>(max_rows * cols) *
                                         sizeof(float)));
    return absl::OkStatus();
  }

  int64_t cols() const { return cols_; }
  float* data() const { return reinterpret_cast<float*>(buffer_.data()); }

  // The first `rows` rows.
  MatrixView<float> First(int64_t rows) const {
    return {buffer_.As<float>().first(static_cast<size_t>(rows * cols_)), rows,
            cols_};
  }
  MatrixView<const float> ConstFirst(int64_t rows) const {
    return {buffer_.As<const float>().first(static_cast<size_t>(rows * cols_)),
            rows, cols_};
  }

 private:
  AlignedBuffer buffer_;
  int64_t cols_ = 0;
};

// Rows of activations as they enter a matrix: bf16 or f32, padded with zeros.
class ActivationMatrix {
 public:
  absl::Status Allocate(int64_t max_rows, int64_t cols, ActivationDtype dtype) {
    cols_ = cols;
    dtype_ = dtype;
    PORTOLAN_ASSIGN_OR_RETURN(
        buffer_, AlignedBuffer::Allocate(static_cast<size_t>(
                     max_rows * PaddedCols(cols) * BytesOf(dtype))));
    return absl::OkStatus();
  }

  ActivationView First(int64_t rows) const {
    return {.data = buffer_.data(),
            .dtype = dtype_,
            .rows = rows,
            .cols = cols_,
            .stride = PaddedCols(cols_)};
  }

 private:
  AlignedBuffer buffer_;
  int64_t cols_ = 0;
  ActivationDtype dtype_ = ActivationDtype::kBf16;
};

// Everything a step writes, allocated once. Private to ForwardPass.
// Thread-compatible.
struct ForwardBuffers {
  // `looks_ahead`: with room for what the gates ahead say.
  // Errors: kResourceExhausted (memory).
  absl::Status Allocate(const ForwardPass::Options& options,
                        const ModelConfig& config, int32_t kv_pages,
                        bool looks_ahead);

  std::vector<ForwardSequence> sequences;
  int64_t num_tokens = 0;
  std::vector<StepToken> tokens;
  std::vector<int32_t> positions;
  std::vector<Kernels::Sequence> attention;
  std::vector<std::byte*> pages;  // of all sequences, one layer

  FloatRows hidden;  // residual stream
  FloatRows delta;   // what the last block adds to it
  FloatRows normed;  // f32, for the gate
  FloatRows q, k, v;
  FloatRows probabilities;
  FloatRows look_ahead[2];
  FloatRows look_ahead_normed;
  ActivationMatrix look_ahead_act;  // written along with it, not read
  FloatRows logit_hidden, logits;
  ActivationMatrix normed_act;
  ActivationMatrix gate_input;  // f32, where hidden is no multiple of 32
  ActivationMatrix q_act;
  ActivationMatrix attended;
  ActivationMatrix logit_act;
  std::vector<int32_t> experts;
  std::vector<float> weights;
  std::vector<int32_t> all_rows;  // 0, 1, 2, ...: for dense blocks
};

}  // namespace portolan
