#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "runtime/base/ids.h"

namespace portolan {

// What the gate chose for a batch at one layer. Both spans are
// [num_tokens, top_k], row-major.
struct Routing {
  int64_t num_tokens = 0;
  int32_t top_k = 0;
  std::span<const int32_t> experts;  // expert index within the layer
  std::span<const float> weights;    // gate weight of that expert
};

// Which activation rows go to which rank, for some tokens of a batch: one row
// per (token, destination rank), however many of its experts live there.
// Destinations follow each other in rank order, the rows of a destination in
// token order, its selections in (token, top-k) order; so places are prefix
// sums of counts, and equal routing always gives an equal plan.
struct DispatchPlan {
  std::vector<int32_t> row_begin;        // [world + 1] first row of a rank
  std::vector<int32_t> selection_begin;  // [world + 1]
  std::vector<int32_t> tokens;           // [rows] token index in the batch
  std::vector<int32_t> experts;          // [selections]
  std::vector<float> weights;            // [selections]
  std::vector<int32_t> row_of;   // [selections] row, counted within its rank
  std::vector<int32_t> slot_of;  // [tokens, top_k] place among the selections
  std::vector<int32_t> rows_done, selections_done;  // [world] PlanDispatch()'s

  int32_t num_rows(Rank rank) const { return Count(row_begin, rank); }
  int32_t num_selections(Rank rank) const {
    return Count(selection_begin, rank);
  }

 private:
  static int32_t Count(const std::vector<int32_t>& begin, Rank rank) {
    const auto r = static_cast<size_t>(ToIndex(rank));
    return begin[r + 1] - begin[r];
  }
};

// Errors: kInvalidArgument if the spans of `routing` do not fit its sizes or an
// expert does not exist.
absl::Status CheckRouting(const Routing& routing, int32_t num_experts);

// Plans the dispatch of tokens [first_token, first_token + num_tokens) of a
// checked `routing`; owner[e] is the rank that holds expert e. Pure; reuses the
// memory of `plan`.
void PlanDispatch(const Routing& routing, int64_t first_token,
                  int64_t num_tokens, std::span<const Rank> owner,
                  int world_size, DispatchPlan& plan);

}  // namespace portolan
