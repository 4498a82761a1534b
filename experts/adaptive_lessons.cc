#include "experts/adaptive_lessons.h"

#include <algorithm>
#include <utility>

#include "experts/adaptive_sources.h"

namespace portolan::adaptive {
namespace {

constexpr float kLearningRate = 0.01f;
// Tokens of a step that mixers learn from: evenly spread, for a long prompt
// teaches little more than a part of it.
constexpr int64_t kLearnTokens = 4;
constexpr size_t kNumInStep = 3;  // foresights within the step

}  // namespace

Lessons::Lessons(const PredictorShape& shape, std::vector<Mixer>& mixers)
    : layers_(static_cast<size_t>(shape.num_layers)),
      experts_(static_cast<size_t>(shape.num_experts)),
      top_k_(static_cast<size_t>(shape.top_k)),
      mixers_(mixers),
      lessons_(kLearnTokens),
      used_(experts_) {
  const auto make_room = [this](Lesson& lesson, size_t places) {
    lesson.inputs.resize(places * kNumInputs * experts_);
    lesson.probabilities.resize(places * experts_);
  };
  for (Lesson& lesson : lessons_) make_room(lesson, kNumInStep * layers_);
  make_room(pending_, layers_);
  make_room(due_, layers_);
}

void Lessons::BeginStep(const StepTokens& tokens, int64_t step) {
  std::swap(pending_, due_);
  due_.row = -1;
  int64_t rows = 0;
  for (const SequenceSlice& slice : tokens.slices) {
    if (slice.sequence == due_.sequence) due_.row = rows;
    rows += std::ssize(slice.token_ids);
  }
  pending_.sequence =
      tokens.slices[static_cast<size_t>(step) % tokens.slices.size()].sequence;
  num_lessons_ = static_cast<size_t>(std::min(rows, kLearnTokens));
  for (size_t i = 0; i < num_lessons_; ++i) {
    lessons_[i].row =
        static_cast<int64_t>(i) * rows / static_cast<int64_t>(num_lessons_);
  }
}

void Lessons::Keep(Foresight foresight, int32_t layer, int64_t row,
                   MatrixView<const float> inputs,
                   std::span<const float> probabilities) {
  for (size_t lesson = 0; lesson < num_lessons_; ++lesson) {
    if (lessons_[lesson].row != row) continue;
    KeepAt(Place(foresight, layer), lessons_[lesson], inputs, probabilities);
  }
}

void Lessons::KeepNextStep(int32_t layer, int64_t sequence,
                           MatrixView<const float> inputs,
                           std::span<const float> probabilities) {
  if (sequence != pending_.sequence) return;
  KeepAt(static_cast<size_t>(layer), pending_, inputs, probabilities);
}

void Lessons::KeepAt(size_t place, Lesson& lesson,
                     MatrixView<const float> inputs,
                     std::span<const float> probabilities) const {
  const auto cell = static_cast<std::ptrdiff_t>(place * experts_);
  std::ranges::copy(
      inputs.data(),
      lesson.inputs.begin() + cell * static_cast<std::ptrdiff_t>(kNumInputs));
  std::ranges::copy(probabilities, lesson.probabilities.begin() + cell);
}

void Lessons::Learn(const LayerObservation& observation) {
  const int32_t layer = observation.layer;
  const auto mark_used = [&](int64_t row) {
    std::ranges::fill(used_, 0.0f);
    for (const int32_t expert : observation.experts.subspan(
             static_cast<size_t>(row) * top_k_, top_k_)) {
      used_[static_cast<size_t>(expert)] = 1.0f;
    }
  };
  for (size_t i = 0; i < num_lessons_; ++i) {
    mark_used(lessons_[i].row);
    for (int32_t f = 0; f < static_cast<int32_t>(kNumInStep); ++f) {
      if (layer < f) continue;  // nobody looked ahead so far
      const auto foresight = static_cast<Foresight>(f);
      LearnFrom(lessons_[i], Place(foresight, layer),
                MixerOf(foresight, layer));
    }
  }
  if (due_.row < 0) return;
  mark_used(due_.row);
  LearnFrom(due_, static_cast<size_t>(layer),
            MixerOf(Foresight::kNextStep, layer));
}

void Lessons::LearnFrom(const Lesson& lesson, size_t place,
                        Mixer& mixer) const {
  const size_t cell = place * experts_;
  mixer.Learn(
      {std::span(lesson.inputs)
           .subspan(cell * kNumInputs, kNumInputs * experts_),
       static_cast<int64_t>(kNumInputs), static_cast<int64_t>(experts_)},
      std::span(lesson.probabilities).subspan(cell, experts_), used_,
      kLearningRate);
}

}  // namespace portolan::adaptive
