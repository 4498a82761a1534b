#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "runtime/base/matrix_view.h"

namespace portolan {

// Logarithm and exponential good to 1e-4, branch-free so that loops over them
// become vector code. For predictions only: nothing that is computed depends
// on them.
float FastLog(float x);  // x > 0, normal
float FastExp(float x);  // |x| < 80

// ln(p / (1 - p)) with p held inside [0.001, 0.999], and its inverse.
float Stretch(float probability);
float Squash(float logit);

// Mixes the probabilities that several sources give to the same events into
// one, in the logistic domain: logit = sum of weight * input. Learns the
// weights online by gradient descent on the log-loss, so a source that
// misleads loses its weight and one that is merely timid gains.
//
// Thread-compatible, no allocation.
// Source: logistic mixing of Mahoney's PAQ; the weight set by context.
class Mixer {
 public:
  static constexpr size_t kMaxInputs = 8;

  // The first input is a constant bias by convention of the callers.
  explicit Mixer(size_t num_inputs) : num_inputs_(num_inputs) {}

  size_t num_inputs() const { return num_inputs_; }
  std::span<float> weights() { return {weights_.data(), num_inputs_}; }
  std::span<const float> weights() const {
    return {weights_.data(), num_inputs_};
  }

  // inputs: [num_inputs, n] stretched; probabilities: [n].
  void Mix(MatrixView<const float> inputs,
           std::span<float> probabilities) const;

  // One step down the gradient. used: [n], 0 or 1 (or a share between).
  void Learn(MatrixView<const float> inputs,
             std::span<const float> probabilities, std::span<const float> used,
             float rate);

 private:
  size_t num_inputs_;
  std::array<float, kMaxInputs> weights_ = {};
};

}  // namespace portolan
