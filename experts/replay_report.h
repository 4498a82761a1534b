#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "experts/replay.h"

namespace portolan {

// One replay and the budget that it ran under.
struct ReplayRow {
  std::string expert_memory;  // as given to --expert-memory
  double budget = 0;          // slots / owned experts, 0 .. 1
  // CPU time that replaying took per step and layer: policy, predictor and the
  // simulated cache. Less the row of lru, it is what the policy thinks.
  double cpu_us_per_layer = 0;
  ReplayResult result;
};

// A table for people: per row policy, budget, stall per token, hit, late and
// miss shares, megabytes by class, CPU time of replaying a layer, and the gap
// in stall to the oracle's row of the same budget, if there is one; then
// precision and recall by source.
std::string ReplayTable(std::span<const ReplayRow> rows);

// Where the stall of `adaptive` comes from, per budget: what it saves over lru,
// and what perfect hints, the oracle's victims or the oracle's choice of reads
// alone would save; the stall that the link leaves even to the oracle. Budgets
// without rows for these (policy_ablation.h) are left out.
std::string LossTable(std::span<const ReplayRow> rows);

// The same as an array of objects, with all counters, per rank as well.
nlohmann::json ReplayJson(std::span<const ReplayRow> rows);

// Counters of one rank or the sum; seconds and bytes.
nlohmann::json ToJson(const ExpertMetrics& metrics);

}  // namespace portolan
