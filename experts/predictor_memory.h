#pragma once

#include <cstdint>
#include <string_view>

#include "experts/history.h"
#include "experts/predictor.h"

namespace portolan {

// Bytes that the predictor of a policy takes beside the history, at most, once
// a step had max_step_tokens tokens: tracks of tokens, of which each searches
// the maps for itself, and what is kept of `sequences` living sequences. 0 for
// a policy that foretells nothing.
int64_t PredictorBytes(std::string_view policy, const PredictorShape& shape,
                       const HistoryShape& history, int32_t sequences);

}  // namespace portolan
