#pragma once

#include <memory>

#include "experts/predictor.h"

namespace portolan {

class History;

// Predictors that match expert maps and otherwise follow what was published.
// Both learn into `history`, which must outlive them.

// fMoE, to the letter (algorithms.md section 1): a record per token and
// iteration (embedding row, gate probabilities); semantic search for layers
// 0 .. distance - 1, trajectory search for layer l + distance; of the matched
// row, the experts of highest p until their sum reaches 1 - similarity, at
// least top_k. Score: a MapScore's hint, of the row's p, the largest over
// tokens, and whether any token selected the expert.
std::unique_ptr<Predictor> MakeFmoePredictor(const PredictorShape& shape,
                                             int32_t distance,
                                             History& history);

// MoE-Infinity: the stored sequence whose activation counts (layers x experts)
// are nearest by cosine to those of the present sequence foretells by its
// ratios. Score: the ratio, summed over sequences. Distances 1, 2, `distance`.
std::unique_ptr<Predictor> MakeEamPredictor(const PredictorShape& shape,
                                            int32_t distance, History& history);

}  // namespace portolan
