#pragma once

#include <cstdint>
#include <span>

#include "runtime/base/fp16.h"

namespace portolan {

// A hint is a score for each expert of a layer that a rank's tokens will reach.
// How the owner makes one score of those of several ranks: expected tokens add
// up, of probabilities the largest counts.
enum class HintMerge : uint8_t { kSum, kMax };

// Writes the merge of `sources` (each [num_scores], one per rank; NaN and
// negative values count as 0) to `merged` ([num_scores]).
void MergeHints(HintMerge merge, std::span<const std::span<const Fp16>> sources,
                std::span<float> merged);

// A hint that adds up over tokens and ranks to what their union needs: of a
// token that chooses an expert with probability p, -ln(1 - p), the tokens that
// a Poisson process of the same chance of none has. p of 1 counts as 0.999.
float HintOf(float probability);
// Probability that any token chooses an expert whose hints add up to `sum`.
float UnionProbability(float sum);

// A hint of `fmoe`: the probability that the matched map gives to an expert and
// whether it is among those selected to be read. Selection is told by scale, so
// that of several hints the largest says both; a selected expert's probability
// counts as 1/2048 at least.
struct MapScore {
  float probability = 0;
  bool selected = false;

  friend bool operator==(const MapScore&, const MapScore&) = default;
};
float HintOf(MapScore score);
MapScore MapScoreOf(float hint);

// Probability that a layer needs an expert at all, if `expected` of the step's
// `num_tokens` tokens are expected to choose it (each with the same chance,
// which is what is known of them): 1 - (1 - expected / n)^n.
float UseProbability(float expected, int64_t num_tokens);

}  // namespace portolan
