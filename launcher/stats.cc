#include "launcher/stats.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "experts/replay_report.h"
#include "runtime/base/status_macros.h"
#include "runtime/serving/collectives.h"

namespace portolan {
namespace {

using Json = nlohmann::ordered_json;

Json PredictionsOf(const RankRuntime& rank) {
  Json list = Json::array();
  for (const PredictionMetrics& p : rank.predictions()) {
    list.push_back({{"source", p.source},
                    {"distance", p.distance},
                    {"predicted", p.predicted},
                    {"needed", p.needed},
                    {"correct", p.correct}});
  }
  return list;
}

Json RankFigures(const RankRuntime& rank, const Transport& transport) {
  const ExpertMetrics experts = rank.expert_metrics();
  const ExpertCache::Counters cache = rank.expert_counters();
  const TransportStats traffic = transport.stats();
  return {{"rank", ToIndex(transport.rank())},
          {"host", std::string(transport.host(transport.rank()))},
          {"threads", rank.num_threads()},
          {"source", rank.expert_source()},
          {"expert_memory_bytes", rank.expert_memory_bytes()},
          {"expert_memory_peak_bytes", cache.occupied_bytes_peak},
          {"staging_bytes", rank.staging_bytes()},
          {"expert_bytes_at_start", cache.start_logical_bytes},
          {"expert_bytes_read", cache.bytes_read},
          {"hits", experts.hits},
          {"late", experts.late},
          {"misses", experts.misses},
          {"stall_s", absl::ToDoubleSeconds(experts.stall)},
          {"bytes", ToJson(experts)["bytes"]},
          {"retries", cache.retries},
          {"failed_prefetches", cache.failed_speculative},
          {"predictions", PredictionsOf(rank)},
          {"tokens", rank.engine().counters().generated_tokens},
          {"prompt_tokens", rank.engine().counters().prompt_tokens},
          {"cached_prompt_tokens", rank.engine().counters().prefix_hits},
          {"messages_sent", traffic.messages_sent},
          {"bytes_sent", traffic.bytes_sent},
          {"selections_by_layer", rank.moe().selections_by_layer()}};
}

// Mean over layers of the busiest rank's share against the mean share.
double Imbalance(const std::vector<Json>& ranks) {
  const size_t layers = ranks.front()["selections_by_layer"].size();
  double sum = 0;
  int64_t counted = 0;
  for (size_t layer = 0; layer < layers; ++layer) {
    double most = 0;
    double total = 0;
    for (const Json& rank : ranks) {
      const double load = rank["selections_by_layer"][layer];
      most = std::max(most, load);
      total += load;
    }
    if (total == 0) continue;  // no MoE layer
    sum += most * static_cast<double>(ranks.size()) / total;
    ++counted;
  }
  return counted == 0 ? 1 : sum / static_cast<double>(counted);
}

// By source and distance, all ranks together.
Json MergedPredictions(const std::vector<Json>& ranks) {
  std::map<std::pair<std::string, int32_t>, PredictionMetrics> merged;
  for (const Json& rank : ranks) {
    for (const Json& p : rank["predictions"]) {
      PredictionMetrics& sum = merged[{p["source"], p["distance"]}];
      sum.predicted += p["predicted"].get<int64_t>();
      sum.needed += p["needed"].get<int64_t>();
      sum.correct += p["correct"].get<int64_t>();
    }
  }
  Json list = Json::array();
  for (const auto& [key, sum] : merged) {
    list.push_back({{"source", key.first},
                    {"distance", key.second},
                    {"precision", sum.Precision()},
                    {"recall", sum.Recall()},
                    {"predicted", sum.predicted},
                    {"needed", sum.needed}});
  }
  return list;
}

template <typename T>
T Sum(const std::vector<Json>& ranks, const Json::json_pointer& field) {
  return std::accumulate(
      ranks.begin(), ranks.end(), T{0},
      [&](T sum, const Json& rank) { return sum + rank[field].get<T>(); });
}

double HitRate(int64_t hits, int64_t late, int64_t misses) {
  return ExpertMetrics{.hits = hits, .late = late, .misses = misses}.HitRate();
}

Json Summary(const RankRuntime& rank, const RunFigures& figures,
             const std::vector<Json>& ranks) {
  const auto total = [&](const char* field) {
    return Sum<int64_t>(ranks, Json::json_pointer(field));
  };
  return {
      {"ranks", ranks.size()},
      {"policy", std::string(rank.policy_name())},
      {"expert_memory_bytes", total("/expert_memory_bytes")},
      {"expert_memory_peak_bytes", total("/expert_memory_peak_bytes")},
      {"staging_bytes", total("/staging_bytes")},
      {"expert_bytes_at_start", total("/expert_bytes_at_start")},
      {"expert_bytes_read", total("/expert_bytes_read")},
      {"hits", total("/hits")},
      {"late", total("/late")},
      {"misses", total("/misses")},
      {"hit_rate", HitRate(total("/hits"), total("/late"), total("/misses"))},
      {"stall_s", Sum<double>(ranks, Json::json_pointer("/stall_s"))},
      {"bytes",
       {{"demand", total("/bytes/demand")},
        {"prefetch_used", total("/bytes/prefetch_used")},
        {"prefetch_wasted", total("/bytes/prefetch_wasted")},
        {"prefetch_resident", total("/bytes/prefetch_resident")}}},
      {"retries", total("/retries")},
      {"failed_prefetches", total("/failed_prefetches")},
      {"predictions", MergedPredictions(ranks)},
      {"tokens", total("/tokens")},
      {"prompt_tokens", total("/prompt_tokens")},
      {"cached_prompt_tokens", total("/cached_prompt_tokens")},
      {"steps", figures.steps},
      {"seconds", figures.seconds},
      {"imbalance", Imbalance(ranks)},
      {"messages_sent", total("/messages_sent")},
      {"bytes_sent", total("/bytes_sent")},
      {"per_rank", ranks}};
}

}  // namespace

absl::Status WriteStats(const std::string& path, const RankRuntime& rank,
                        const RunFigures& figures, Transport& transport) {
  PORTOLAN_ASSIGN_OR_RETURN(
      const std::vector<std::string> texts,
      GatherToRoot(transport, RankFigures(rank, transport).dump(),
                   absl::Minutes(1)));
  if (transport.rank() != Rank{0}) return absl::OkStatus();
  std::vector<Json> ranks;
  for (const std::string& text : texts) ranks.push_back(Json::parse(text));
  errno = 0;
  std::ofstream file(path);
  file << Summary(rank, figures, ranks).dump(2) << "\n";
  file.close();
  if (file) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("--stats: cannot write ", path, ": ",
                   std::strerror(errno == 0 ? EIO : errno)));
}

}  // namespace portolan
