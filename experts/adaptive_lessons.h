#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "experts/mixer.h"
#include "experts/predictor.h"
#include "experts/predictor_adaptive.h"
#include "runtime/base/matrix_view.h"

// Private to the adaptive predictor.
namespace portolan::adaptive {

// Teaches the mixers: keeps what they said of some tokens until the gates have
// said where those went. Of a step a few tokens, at every foresight within it;
// of the step after it the token of one sequence. Thread-compatible.
class Lessons {
 public:
  // mixers: [kNumForesights, num_layers]; must outlive the lessons.
  Lessons(const PredictorShape& shape, std::vector<Mixer>& mixers);

  Mixer& MixerOf(Foresight foresight, int32_t layer) {
    return mixers_[Place(foresight, layer)];
  }

  // Chooses what to learn from. step: its number.
  void BeginStep(const StepTokens& tokens, int64_t step);
  // What the mixer made of its inputs for the token in a row of the step: kept
  // if that was chosen.
  void Keep(Foresight foresight, int32_t layer, int64_t row,
            MatrixView<const float> inputs,
            std::span<const float> probabilities);
  // The same for the token after the last one of a sequence.
  void KeepNextStep(int32_t layer, int64_t sequence,
                    MatrixView<const float> inputs,
                    std::span<const float> probabilities);
  void Learn(const LayerObservation& observation);

 private:
  // What the mixers said of a token, by place: a layer, or Place() within the
  // step.
  struct Lesson {
    int64_t row = -1;                       // of the step; -1: none
    int64_t sequence = -1;                  // kNextStep only
    std::vector<float> inputs = {};         // [places, kNumInputs, experts]
    std::vector<float> probabilities = {};  // [places, experts]
  };

  size_t Place(Foresight foresight, int32_t layer) const {
    return static_cast<size_t>(foresight) * layers_ +
           static_cast<size_t>(layer);
  }
  void KeepAt(size_t place, Lesson& lesson, MatrixView<const float> inputs,
              std::span<const float> probabilities) const;
  void LearnFrom(const Lesson& lesson, size_t place, Mixer& mixer) const;

  const size_t layers_;
  const size_t experts_;
  const size_t top_k_;
  std::vector<Mixer>& mixers_;
  std::vector<Lesson> lessons_;  // the first num_lessons_ are in use
  size_t num_lessons_ = 0;
  Lesson pending_;           // about the next step
  Lesson due_;               // about this one, from the last
  std::vector<float> used_;  // scratch, [num_experts]
};

}  // namespace portolan::adaptive
