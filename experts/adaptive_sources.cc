#include "experts/adaptive_sources.h"

#include <algorithm>

namespace portolan::adaptive {
namespace {

constexpr float kRecentMemory = 0.85f;  // per token, of the sequence
constexpr float kMeanPrior = 8;         // tokens that the prior counts for

// What is measured: a source alone, or the mixture, at one foresight.
struct Measured {
  std::string_view name;
  Input input;  // kNumInputs: the mixture
  Foresight foresight;
};
constexpr std::array kMeasured = {
    Measured{"popularity", kPopularity, Foresight::kTokens},
    Measured{"recent use", kRecent, Foresight::kTokens},
    Measured{"mean use", kMean, Foresight::kTokens},
    Measured{"semantic map", kSemantic, Foresight::kTokens},
    Measured{"token table", kToken, Foresight::kTokens},
    Measured{"trajectory map", kTrajectory, Foresight::kNextLayer},
    Measured{"trajectory map", kTrajectory, Foresight::kLayerAfter},
    Measured{"look-ahead", kAhead, Foresight::kNextLayer},
    Measured{"look-ahead", kAhead, Foresight::kLayerAfter},
    Measured{"mixture", kNumInputs, Foresight::kNextLayer},
    Measured{"mixture", kNumInputs, Foresight::kLayerAfter},
    Measured{"mixture", kNumInputs, Foresight::kTokens},
    Measured{"mixture", kNumInputs, Foresight::kNextStep},
};

// Layers that it looks ahead at most.
int32_t DistanceOf(Foresight foresight, int32_t num_layers) {
  switch (foresight) {
    case Foresight::kTokens:
      return num_layers;
    case Foresight::kNextStep:
      return 2 * num_layers;
    case Foresight::kNextLayer:
      return 1;
    case Foresight::kLayerAfter:
      return 2;
  }
  return 0;
}

}  // namespace

void SequenceUse::BeginAsForetold() {
  recent = semantic;
  mean = semantic;
}

void SequenceUse::Learn(std::span<const int32_t> choices, size_t top_k,
                        size_t num_experts) {
  const float mean_rate = 1.0f / (static_cast<float>(++tokens) + kMeanPrior);
  for (size_t i = 0; i < recent.size(); ++i) {
    recent[i] *= kRecentMemory;
    mean[i] *= 1 - mean_rate;
  }
  for (size_t i = 0; i < choices.size(); ++i) {
    const size_t cell =
        i / top_k * num_experts + static_cast<size_t>(choices[i]);
    recent[cell] += 1 - kRecentMemory;
    mean[cell] += mean_rate;
    used[cell] += 1;
  }
}

SourceScores::SourceScores(int32_t num_layers, int32_t num_experts,
                           int32_t top_k)
    : layers_(static_cast<size_t>(num_layers)),
      experts_(static_cast<size_t>(num_experts)),
      top_k_(static_cast<size_t>(top_k)),
      sums_(kMeasured.size() * layers_ * experts_),
      tokens_(experts_) {
  for (const Measured& measured : kMeasured) {
    scores_.emplace_back(measured.name,
                         DistanceOf(measured.foresight, num_layers));
  }
}

void SourceScores::BeginStep() { Clear(/*next_step=*/false); }

void SourceScores::BeginNextStep() { Clear(/*next_step=*/true); }

void SourceScores::Clear(bool next_step) {
  const auto cells = layers_ * experts_;
  for (size_t i = 0; i < kMeasured.size(); ++i) {
    if ((kMeasured[i].foresight == Foresight::kNextStep) != next_step) continue;
    std::ranges::fill(std::span(sums_).subspan(i * cells, cells), 0.0f);
  }
}

std::span<float> SourceScores::Sum(size_t source, int32_t layer) {
  return std::span(sums_).subspan(
      (source * layers_ + static_cast<size_t>(layer)) * experts_, experts_);
}

float SourceScores::Probability(Input input, float value) const {
  if (input != kAhead) return Squash(value);
  // Of a gate's probability: as if the top-k were drawn by it.
  return std::min(1.0f, FastExp(value) * static_cast<float>(top_k_) /
                            static_cast<float>(experts_));
}

void SourceScores::Add(Foresight foresight, int32_t layer,
                       MatrixView<const float> inputs, bool knows_trajectory,
                       std::span<const float> mixed) {
  for (size_t i = 0; i < kMeasured.size(); ++i) {
    if (kMeasured[i].foresight != foresight) continue;
    const Input input = kMeasured[i].input;
    if (input == kTrajectory && !knows_trajectory) continue;
    const std::span<float> sum = Sum(i, layer);
    if (input == kNumInputs) {
      for (size_t e = 0; e < experts_; ++e) sum[e] += mixed[e];
      continue;
    }
    const std::span<const float> row = inputs.Row(static_cast<int64_t>(input));
    for (size_t e = 0; e < experts_; ++e) sum[e] += Probability(input, row[e]);
  }
}

void SourceScores::Count(int32_t layer, std::span<const int32_t> experts) {
  std::ranges::fill(tokens_, 0);
  for (const int32_t expert : experts) ++tokens_[static_cast<size_t>(expert)];
  for (size_t i = 0; i < kMeasured.size(); ++i) {
    const Foresight foresight = kMeasured[i].foresight;
    // Nobody looked ahead so far.
    if (foresight == Foresight::kNextLayer && layer < 1) continue;
    if (foresight == Foresight::kLayerAfter && layer < 2) continue;
    scores_[i].Count(Sum(i, layer), tokens_,
                     std::ssize(experts) / static_cast<int64_t>(top_k_));
  }
}

std::vector<PredictionMetrics> SourceScores::metrics() const {
  std::vector<PredictionMetrics> metrics;
  for (const PredictionScore& score : scores_) {
    metrics.push_back(score.metrics());
  }
  return metrics;
}

}  // namespace portolan::adaptive
