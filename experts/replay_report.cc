#include "experts/replay_report.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace portolan {
namespace {

double StallSeconds(const ReplayRow& row) {
  return absl::ToDoubleSeconds(row.result.total.stall);
}

double Share(int64_t part, const ExpertMetrics& metrics) {
  return metrics.accesses() == 0 ? 0.0
                                 : static_cast<double>(part) /
                                       static_cast<double>(metrics.accesses());
}

// Stall beyond the oracle's under the same budget.
std::optional<double> GapSeconds(const ReplayRow& row,
                                 std::span<const ReplayRow> rows) {
  for (const ReplayRow& other : rows) {
    if (other.result.policy == "oracle" && other.budget == row.budget &&
        other.result.num_ranks == row.result.num_ranks) {
      return StallSeconds(row) - StallSeconds(other);
    }
  }
  return std::nullopt;
}

std::string TableRow(const ReplayRow& row, std::span<const ReplayRow> rows) {
  const ExpertMetrics& m = row.result.total;
  const std::optional<double> gap = GapSeconds(row, rows);
  return absl::StrFormat(
      "%-10s %8s %10.3f %10.3f %7.1f %7.1f %7.1f %9.1f %9.1f %9.1f %8.1f "
      "%10s\n",
      row.result.policy, row.expert_memory, StallSeconds(row),
      m.StallPerToken() * 1e3, 100 * Share(m.hits, m), 100 * Share(m.late, m),
      100 * Share(m.misses, m), static_cast<double>(m.demand_bytes) / 1e6,
      static_cast<double>(m.prefetch_used_bytes) / 1e6,
      static_cast<double>(m.prefetch_wasted_bytes) / 1e6, row.cpu_us_per_layer,
      gap ? absl::StrFormat("%.3f", *gap) : "-");
}

nlohmann::json PredictionsJson(const ReplayResult& result) {
  nlohmann::json list = nlohmann::json::array();
  for (const PredictionMetrics& p : result.predictions) {
    list.push_back({{"source", p.source},
                    {"distance", p.distance},
                    {"precision", p.Precision()},
                    {"recall", p.Recall()},
                    {"predicted", p.predicted},
                    {"needed", p.needed}});
  }
  return list;
}

}  // namespace

std::string ReplayTable(std::span<const ReplayRow> rows) {
  std::string table = absl::StrFormat(
      "%-10s %8s %10s %10s %7s %7s %7s %9s %9s %9s %8s %10s\n", "policy",
      "memory", "stall s", "ms/token", "hit %", "late %", "miss %", "demand MB",
      "used MB", "wasted MB", "us/layer", "gap s");
  for (const ReplayRow& row : rows) table += TableRow(row, rows);
  for (const ReplayRow& row : rows) {
    if (row.result.predictions.empty()) continue;
    absl::StrAppend(&table, "\n", row.result.policy, " at ", row.expert_memory,
                    ": precision and recall by source and distance\n");
    for (const PredictionMetrics& p : row.result.predictions) {
      absl::StrAppend(&table,
                      absl::StrFormat("  %-18s +%-3d %6.3f %6.3f\n", p.source,
                                      p.distance, p.Precision(), p.Recall()));
    }
  }
  for (const ReplayRow& row : rows) {
    if (row.result.notice.empty()) continue;
    absl::StrAppend(&table, "note: ", row.result.notice, " (",
                    row.expert_memory, ")\n");
  }
  return table;
}

std::string LossTable(std::span<const ReplayRow> rows) {
  std::string table = absl::StrFormat(
      "\n%8s %8s %8s %8s %9s | stall s lost to %10s %8s %9s %8s\n", "memory",
      "lru", "adaptive", "oracle", "closes", "prediction", "eviction",
      "admission", "link");
  for (const ReplayRow& row : rows) {
    if (row.result.policy != "adaptive") continue;
    const auto stall = [&](std::string_view policy) -> std::optional<double> {
      for (const ReplayRow& other : rows) {
        if (other.result.policy == policy && other.budget == row.budget) {
          return StallSeconds(other);
        }
      }
      return std::nullopt;
    };
    const auto lru = stall("lru");
    const auto oracle = stall("oracle");
    const auto prediction = stall("adaptive+prediction");
    const auto eviction = stall("adaptive+eviction");
    const auto admission = stall("adaptive+admission");
    if (!lru || !oracle || !prediction || !eviction || !admission) continue;
    const double own = StallSeconds(row);
    const double gap = *lru - *oracle;
    absl::StrAppend(
        &table,
        absl::StrFormat(
            "%8s %8.3f %8.3f %8.3f %7.1f %% | %26.3f %8.3f %9.3f %8.3f\n",
            row.expert_memory, *lru, own, *oracle,
            gap > 0 ? 100 * (*lru - own) / gap : 100.0, own - *prediction,
            own - *eviction, own - *admission, *oracle));
  }
  return table;
}

nlohmann::json ToJson(const ExpertMetrics& m) {
  return {{"steps", m.steps},
          {"tokens", m.tokens},
          {"hits", m.hits},
          {"late", m.late},
          {"misses", m.misses},
          {"hit_rate", m.HitRate()},
          {"stall_s", absl::ToDoubleSeconds(m.stall)},
          {"bytes",
           {{"demand", m.demand_bytes},
            {"prefetch_used", m.prefetch_used_bytes},
            {"prefetch_wasted", m.prefetch_wasted_bytes},
            {"prefetch_resident", m.prefetch_resident_bytes}}}};
}

nlohmann::json ReplayJson(std::span<const ReplayRow> rows) {
  nlohmann::json list = nlohmann::json::array();
  for (const ReplayRow& row : rows) {
    nlohmann::json object = ToJson(row.result.total);
    object["policy"] = row.result.policy;
    object["expert_memory"] = row.expert_memory;
    object["budget"] = row.budget;
    object["ranks"] = row.result.num_ranks;
    object["stall_per_token_s"] = row.result.total.StallPerToken();
    object["lost_per_token_s"] = row.result.LostPerToken();
    object["cpu_us_per_layer"] = row.cpu_us_per_layer;
    object["time_s"] = absl::ToDoubleSeconds(row.result.time);
    object["compute_s"] = absl::ToDoubleSeconds(row.result.compute);
    if (const auto gap = GapSeconds(row, rows)) object["gap_s"] = *gap;
    object["predictions"] = PredictionsJson(row.result);
    object["per_rank"] = nlohmann::json::array();
    for (const ExpertMetrics& rank : row.result.ranks) {
      object["per_rank"].push_back(ToJson(rank));
    }
    list.push_back(std::move(object));
  }
  return list;
}

}  // namespace portolan
