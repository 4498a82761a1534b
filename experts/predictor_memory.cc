#include "experts/predictor_memory.h"

#include <algorithm>

#include "experts/dot_rows.h"
#include "experts/hints.h"
#include "experts/mixer.h"

namespace portolan {
namespace {

constexpr int64_t kFloat = sizeof(float);
// An object with its vectors and their place in a table.
constexpr int64_t kObject = 512;

int64_t CellsOf(const PredictorShape& shape) {
  return int64_t{shape.num_layers} * shape.num_experts;
}

// Of a TrajectorySearch: a dot product for each record, and a row.
int64_t SearchBytes(const PredictorShape& shape, int32_t capacity) {
  const auto row =
      static_cast<int64_t>(PaddedRow(static_cast<size_t>(shape.num_experts)));
  return (capacity + row) * kFloat;
}

int64_t FmoeBytes(const PredictorShape& shape, const HistoryShape& history) {
  const int64_t track = SearchBytes(shape, history.iterations) +
                        (CellsOf(shape) + shape.hidden) * kFloat + kObject;
  return shape.max_step_tokens * track +
         CellsOf(shape) * int64_t{sizeof(MapScore)};
}

int64_t EamBytes(const PredictorShape& shape, const HistoryShape& history,
                 int32_t sequences) {
  const int64_t sequence = (CellsOf(shape) + shape.hidden) * kFloat + kObject;
  return SearchBytes(shape, history.sequences) + CellsOf(shape) * kFloat +
         sequences * sequence;
}

int64_t AdaptiveBytes(const PredictorShape& shape, const HistoryShape& history,
                      int32_t sequences) {
  const int64_t cells = CellsOf(shape);
  // What the adaptive predictor keeps: trajectories of the first tokens,
  // lessons of some tokens at three foresights and of the next step twice, sums
  // for two steps, and what each source said alone.
  constexpr int64_t kTracks = 4;
  constexpr int64_t kLessons = 4 * 3 + 2;
  constexpr int64_t kSources = 12;
  const int64_t track =
      SearchBytes(shape, history.iterations) + cells * kFloat + kObject;
  const int64_t lesson = int64_t{Mixer::kMaxInputs + 1} * cells * kFloat;
  const int64_t sequence = (4 * cells + shape.hidden) * kFloat + kObject;
  const int64_t token =
      (int64_t{shape.num_layers} * shape.top_k + 1) * int64_t{sizeof(int32_t)};
  return kTracks * track + kLessons * lesson + (kSources + 3) * cells * kFloat +
         shape.hidden * kFloat + sequences * sequence +
         shape.max_step_tokens * token;
}

}  // namespace

int64_t PredictorBytes(std::string_view policy, const PredictorShape& shape,
                       const HistoryShape& history, int32_t sequences) {
  if (policy == "fmoe") return FmoeBytes(shape, history);
  if (policy == "eam") return EamBytes(shape, history, sequences);
  if (policy == "adaptive") return AdaptiveBytes(shape, history, sequences);
  if (policy == "gate-1" || policy == "gate-2") return CellsOf(shape) * kFloat;
  return 0;
}

}  // namespace portolan
