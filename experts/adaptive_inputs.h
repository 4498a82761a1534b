#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "experts/adaptive_sources.h"
#include "experts/adaptive_trajectories.h"
#include "experts/predictor.h"
#include "experts/token_table.h"
#include "runtime/base/matrix_view.h"

// Private to the adaptive predictor.
namespace portolan::adaptive {

// What the sources say of one token at one layer, as the mixers take it:
// stretched probabilities, a row of experts for each Input. A row stays as it
// was filled last. Thread-compatible.
class Inputs {
 public:
  explicit Inputs(int32_t num_experts);

  MatrixView<const float> rows() const {
    return {rows_, static_cast<int64_t>(kNumInputs),
            static_cast<int64_t>(experts_)};
  }

  // All rows but kToken: what a sequence says whichever its token; nothing yet
  // of kAhead and kTrajectory. popularity: [num_layers, num_experts].
  void FillSequence(std::span<const float> popularity, const SequenceUse& state,
                    int32_t layer);
  // What `table` knows of a token.
  void FillToken(const TokenTable& table, int32_t token,
                 const SequenceUse& state, int32_t layer);
  // The probabilities of the gate's look-ahead, of any positive sum.
  void FillAhead(std::span<const float> probabilities);
  // The matched map's view of a token, by its row in the step; false if it was
  // not searched for.
  bool FillTrajectory(const Trajectories& trajectories, int64_t row,
                      int32_t layer);

 private:
  std::span<float> Row(Input input) {
    return std::span(rows_).subspan(input * experts_, experts_);
  }

  const size_t experts_;
  std::vector<float> rows_;  // [kNumInputs, num_experts]
};

}  // namespace portolan::adaptive
