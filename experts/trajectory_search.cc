#include "experts/trajectory_search.h"

#include <algorithm>

#include "experts/dot_rows.h"
#include "runtime/base/check.h"

namespace portolan {

TrajectorySearch::TrajectorySearch(const ExpertMapStore& store)
    : store_(store),
      dots_(static_cast<size_t>(store.shape().capacity)),
      padded_(PaddedRow(static_cast<size_t>(store.shape().num_experts))) {}

void TrajectorySearch::Begin() {
  layer_ = -1;
  records_ = store_.size();
  squares_ = 0;
  std::ranges::fill(dots_, 0.0f);
}

void TrajectorySearch::Extend(int32_t layer, std::span<const float> row) {
  PORTOLAN_CHECK(layer == layer_ + 1);
  layer_ = layer;
  std::ranges::copy(row, padded_.begin());
  store_.AddRowDots(layer, padded_, dots_);
  squares_ += SquaredNorm(row);
}

std::optional<ExpertMapStore::Match> TrajectorySearch::Best() const {
  if (layer_ < 0 || records_ == 0) return std::nullopt;
  ExpertMapStore::Match best{.record = 0, .similarity = -1};
  for (int32_t record = 0; record < records_; ++record) {
    const float norm = store_.PrefixNorm(record, layer_);
    const float cosine =
        norm > 0 ? dots_[static_cast<size_t>(record)] / norm : 0.0f;
    if (cosine > best.similarity) best = {record, cosine};
  }
  best.similarity *= InverseNorm(squares_);
  return best;
}

}  // namespace portolan
