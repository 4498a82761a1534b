#include "experts/adaptive_inputs.h"

#include <algorithm>

#include "experts/mixer.h"

namespace portolan::adaptive {
namespace {

constexpr float kTokenPrior = 2;  // visits that the prior counts for

}  // namespace

Inputs::Inputs(int32_t num_experts)
    : experts_(static_cast<size_t>(num_experts)),
      rows_(kNumInputs * experts_) {}

void Inputs::FillSequence(std::span<const float> popularity,
                          const SequenceUse& state, int32_t layer) {
  const auto fill = [&](Input input, const float* probabilities) {
    const std::span<float> row = Row(input);
    for (size_t e = 0; e < experts_; ++e) row[e] = Stretch(probabilities[e]);
  };
  const size_t cell = static_cast<size_t>(layer) * experts_;
  std::ranges::fill(Row(kBias), 1.0f);
  fill(kPopularity, popularity.data() + cell);
  fill(kRecent, state.recent.data() + cell);
  fill(kMean, state.mean.data() + cell);
  fill(kSemantic, state.semantic.data() + cell);
  std::ranges::fill(Row(kAhead), 0.0f);
  std::ranges::fill(Row(kTrajectory), 0.0f);
}

void Inputs::FillToken(const TokenTable& table, int32_t token,
                       const SequenceUse& state, int32_t layer) {
  const TokenTable::Entry entry = table.Find(token, layer);
  const float* const mean =
      state.mean.data() + static_cast<size_t>(layer) * experts_;
  const std::span<float> input = Row(kToken);
  const float scale = 1.0f / (static_cast<float>(entry.visits) + kTokenPrior);
  for (size_t e = 0; e < experts_; ++e) {
    const float count =
        entry.counts.empty() ? 0.0f : static_cast<float>(entry.counts[e]);
    input[e] = Stretch((count + kTokenPrior * mean[e]) * scale);
  }
}

void Inputs::FillAhead(std::span<const float> probabilities) {
  float sum = 0;
  for (const float p : probabilities) sum += p;
  // 0 where the gate is as undecided as can be.
  const float scale = sum > 0 ? static_cast<float>(experts_) / sum : 0.0f;
  const std::span<float> input = Row(kAhead);
  for (size_t e = 0; e < experts_; ++e) {
    input[e] = FastLog(probabilities[e] * scale + 0.003f);
  }
}

bool Inputs::FillTrajectory(const Trajectories& trajectories, int64_t row,
                            int32_t layer) {
  const std::span<float> input = Row(kTrajectory);
  const bool known = trajectories.Find(row, layer, input);
  if (known) {
    for (float& value : input) value = Stretch(value);
  } else {
    std::ranges::fill(input, 0.0f);
  }
  return known;
}

}  // namespace portolan::adaptive
