#include "comm/dispatch_plan.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace portolan {
namespace {

// Visits the selections of the planned tokens in (token, top-k) order as
// visit(position in routing.experts, destination rank, whether this is the
// token's first selection for that destination).
template <typename Visit>
void ForEachSelection(const Routing& routing, int64_t first_token,
                      int64_t num_tokens, std::span<const Rank> owner,
                      Visit visit) {
  const auto rank_of = [&](int64_t i) {
    const int32_t expert = routing.experts[static_cast<size_t>(i)];
    return owner[static_cast<size_t>(expert)];
  };
  for (int64_t token = first_token; token < first_token + num_tokens; ++token) {
    const int64_t begin = token * routing.top_k;
    for (int64_t i = begin; i < begin + routing.top_k; ++i) {
      const Rank rank = rank_of(i);
      bool first = true;
      for (int64_t j = begin; j < i && first; ++j) first = rank_of(j) != rank;
      visit(static_cast<size_t>(i), static_cast<size_t>(ToIndex(rank)), first);
    }
  }
}

void Resize(DispatchPlan& plan) {
  const auto selections = static_cast<size_t>(plan.selection_begin.back());
  plan.tokens.resize(static_cast<size_t>(plan.row_begin.back()));
  plan.experts.resize(selections);
  plan.weights.resize(selections);
  plan.row_of.resize(selections);
  plan.slot_of.resize(selections);
}

}  // namespace

absl::Status CheckRouting(const Routing& routing, int32_t num_experts) {
  const auto selections =
      static_cast<size_t>(routing.num_tokens * routing.top_k);
  if (routing.experts.size() != selections ||
      routing.weights.size() != selections) {
    return absl::InvalidArgumentError(
        absl::StrCat("routing of ", routing.num_tokens, " tokens x top-",
                     routing.top_k, " holds ", routing.experts.size(),
                     " experts and ", routing.weights.size(), " weights"));
  }
  const auto bad = std::find_if(
      routing.experts.begin(), routing.experts.end(),
      [&](int32_t expert) { return expert < 0 || expert >= num_experts; });
  if (bad == routing.experts.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("routing names expert ", *bad,
                                                 " of a layer with ",
                                                 num_experts, " experts"));
}

void PlanDispatch(const Routing& routing, int64_t first_token,
                  int64_t num_tokens, std::span<const Rank> owner,
                  int world_size, DispatchPlan& plan) {
  const auto world = static_cast<size_t>(world_size);
  plan.row_begin.assign(world + 1, 0);
  plan.selection_begin.assign(world + 1, 0);
  ForEachSelection(routing, first_token, num_tokens, owner,
                   [&](size_t, size_t rank, bool first) {
                     ++plan.selection_begin[rank + 1];
                     if (first) ++plan.row_begin[rank + 1];
                   });
  std::partial_sum(plan.row_begin.begin(), plan.row_begin.end(),
                   plan.row_begin.begin());
  std::partial_sum(plan.selection_begin.begin(), plan.selection_begin.end(),
                   plan.selection_begin.begin());

  Resize(plan);
  const auto top_k = static_cast<size_t>(routing.top_k);
  const size_t first_index = static_cast<size_t>(first_token) * top_k;
  plan.rows_done.assign(world, 0);
  plan.selections_done.assign(world, 0);
  ForEachSelection(
      routing, first_token, num_tokens, owner,
      [&](size_t i, size_t rank, bool first) {
        int32_t& rows = plan.rows_done[rank];
        if (first) {
          plan.tokens[static_cast<size_t>(plan.row_begin[rank] + rows++)] =
              static_cast<int32_t>(i / top_k);
        }
        const int32_t slot =
            plan.selection_begin[rank] + plan.selections_done[rank]++;
        plan.experts[static_cast<size_t>(slot)] = routing.experts[i];
        plan.weights[static_cast<size_t>(slot)] = routing.weights[i];
        plan.row_of[static_cast<size_t>(slot)] = rows - 1;
        plan.slot_of[i - first_index] = slot;
      });
}

}  // namespace portolan
