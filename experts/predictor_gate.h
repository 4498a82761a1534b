#pragma once

#include <memory>

#include "experts/predictor.h"

namespace portolan {

// Foretells layer l + distance (1 or 2) by its gate on the present hidden
// state: the top-k experts of each token, counted over tokens. Layers before
// the first look-ahead are not foretold.
std::unique_ptr<Predictor> MakeGatePredictor(const PredictorShape& shape,
                                             int32_t distance);

}  // namespace portolan
