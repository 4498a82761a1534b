#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "experts/expert_map_store.h"

namespace portolan {

// A search for the record whose first rows are nearest to those of the
// iteration in work, one layer at a time: O(records * experts) a layer.
//
// score = sum_l P_l . M_l / (|P_1..m| * |M_1..m|). The store must not be
// added to between Begin() and the last Best(). Thread-compatible.
class TrajectorySearch {
 public:
  explicit TrajectorySearch(const ExpertMapStore& store);

  void Begin();
  // The row observed at `layer`, which is one more than the last.
  void Extend(int32_t layer, std::span<const float> row);
  // nullopt while nothing is observed or the store was empty.
  std::optional<ExpertMapStore::Match> Best() const;

 private:
  const ExpertMapStore& store_;
  int32_t layer_ = -1;
  int32_t records_ = 0;
  float squares_ = 0;  // |P_1..m|^2
  std::vector<float> dots_;
  std::vector<float> padded_;
};

}  // namespace portolan
