#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "experts/mixer.h"
#include "experts/prediction_score.h"
#include "experts/predictor_adaptive.h"
#include "experts/sequence_context.h"
#include "runtime/base/matrix_view.h"

// What the adaptive predictor mixes; private to it.
namespace portolan::adaptive {

// Inputs of a mixer. The look-ahead row is 0 under Foresight::kTokens.
enum Input : size_t {
  kBias,
  kPopularity,
  kRecent,
  kMean,
  kSemantic,
  kToken,
  kAhead,
  kTrajectory,
  kNumInputs
};
static_assert(kNumInputs <= Mixer::kMaxInputs);

// A sequence that lives here. Rows are [num_layers, num_experts].
class SequenceUse {
 public:
  SequenceUse(std::span<const float> popularity, int32_t hidden)
      : recent(popularity.begin(), popularity.end()),
        mean(recent),
        semantic(recent),
        used(recent.size(), 0.0f),
        context(hidden) {}

  // `semantic` is the best guess of what a sequence without tokens will do.
  void BeginAsForetold();

  // One token's experts, [num_layers, top_k].
  void Learn(std::span<const int32_t> choices, size_t top_k,
             size_t num_experts);

  std::vector<float> recent;    // probabilities
  std::vector<float> mean;      // likewise
  std::vector<float> semantic;  // likewise, of sequences of similar context
  std::vector<float> used;      // sum of choices
  SequenceContext context;
  int64_t tokens = 0;
  int64_t next_search = 0;
  int32_t last_token = -1;
};

// How well each source foretells alone, and the mixture of all, each at the
// foresights where it matters. Thread-compatible.
class SourceScores {
 public:
  SourceScores(int32_t num_layers, int32_t num_experts, int32_t top_k);

  // Forgets what was added at every foresight but kNextStep, or at that.
  void BeginStep();
  void BeginNextStep();
  // Adds what each source says of one token, and what the mixture says. A
  // trajectory that is not known says nothing.
  void Add(Foresight foresight, int32_t layer, MatrixView<const float> inputs,
           bool knows_trajectory, std::span<const float> mixed);
  // The experts that the layer's gate chose, [num_tokens, top_k].
  void Count(int32_t layer, std::span<const int32_t> experts);

  std::vector<PredictionMetrics> metrics() const;

 private:
  std::span<float> Sum(size_t source, int32_t layer);
  void Clear(bool next_step);
  float Probability(Input input, float value) const;

  const size_t layers_;
  const size_t experts_;
  const size_t top_k_;
  std::vector<PredictionScore> scores_;  // of each source
  std::vector<float> sums_;              // [sources, num_layers, num_experts]
  std::vector<int32_t> tokens_;          // scratch, [num_experts]
};

}  // namespace portolan::adaptive
