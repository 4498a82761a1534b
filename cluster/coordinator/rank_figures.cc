#include "cluster/coordinator/rank_figures.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <algorithm>

namespace portolan {
namespace {

prometheus::Gauge& Gauge(prometheus::Registry& registry, const char* name,
                         const char* help,
                         const std::map<std::string, std::string>& labels) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(
      labels);
}

}  // namespace

double ImbalanceRatio(const std::vector<std::vector<uint64_t>>& loads) {
  size_t num_layers = 0;
  for (const auto& layers : loads) {
    num_layers = std::max(num_layers, layers.size());
  }
  double sum = 0;
  int64_t counted = 0;
  for (size_t layer = 0; layer < num_layers; ++layer) {
    double most = 0;
    double all = 0;
    for (const auto& layers : loads) {
      const double load =
          layer < layers.size() ? static_cast<double>(layers[layer]) : 0;
      most = std::max(most, load);
      all += load;
    }
    if (all <= 0) continue;
    sum += most * static_cast<double>(loads.size()) / all;
    ++counted;
  }
  return counted == 0 ? 0 : sum / static_cast<double>(counted);
}

void RankFigures::Count(const char* name, const char* help,
                        const Labels& labels, double before, double now) {
  prometheus::Counter& counter =
      prometheus::BuildCounter().Name(name).Help(help).Register(registry_).Add(
          labels);
  if (now > before) counter.Increment(now - before);
}

void RankFigures::CountExperts(const v1::RankMetrics& before,
                               const v1::RankMetrics& now) {
  const auto requests = [&](const char* result, uint64_t then, uint64_t today) {
    Count("portolan_expert_cache_requests_total",
          "Experts that were needed, by whether they were in memory",
          {{"tier", "fast"}, {"result", result}}, static_cast<double>(then),
          static_cast<double>(today));
  };
  requests("hit", before.expert_hits(), now.expert_hits());
  requests("late", before.expert_late(), now.expert_late());
  requests("miss", before.expert_misses(), now.expert_misses());
  const auto loaded = [](const v1::RankMetrics& m) {
    return static_cast<double>(m.expert_demand_bytes() +
                               m.expert_prefetch_used_bytes() +
                               m.expert_prefetch_wasted_bytes());
  };
  Count("portolan_expert_load_bytes_total", "Bytes of experts that were read",
        {{"from", "disk"}, {"to", "fast"}}, loaded(before), loaded(now));
  const auto prefetched = [&](const char* outcome, uint64_t then,
                              uint64_t today) {
    Count("portolan_expert_prefetch_bytes_total",
          "Bytes of experts that were read ahead", {{"outcome", outcome}},
          static_cast<double>(then), static_cast<double>(today));
  };
  prefetched("used", before.expert_prefetch_used_bytes(),
             now.expert_prefetch_used_bytes());
  prefetched("wasted", before.expert_prefetch_wasted_bytes(),
             now.expert_prefetch_wasted_bytes());
  Count("portolan_expert_load_stall_seconds_total",
        "Time that ranks waited for experts", {}, before.expert_stall_s(),
        now.expert_stall_s());
}

void RankFigures::CountExchange(const v1::RankMetrics& before,
                                const v1::RankMetrics& now) {
  const auto bytes = [&](const char* direction, uint64_t then, uint64_t today) {
    Count("portolan_dispatch_bytes_total", "Bytes that ranks exchanged",
          {{"direction", direction}}, static_cast<double>(then),
          static_cast<double>(today));
  };
  bytes("out", before.dispatch_bytes_out(), now.dispatch_bytes_out());
  bytes("in", before.dispatch_bytes_in(), now.dispatch_bytes_in());
  CountAlltoall(before.alltoall_s(), now.alltoall_s());
}

void RankFigures::CountAlltoall(const v1::Histogram& before,
                                const v1::Histogram& now) {
  const bool whole = now.counts_size() == now.bounds_size() + 1 &&
                     std::is_sorted(now.bounds().begin(), now.bounds().end());
  if (!whole || now.bounds().empty()) return;
  // The buckets of a series are those of the first rank that told any.
  const prometheus::Histogram::BucketBoundaries bounds(now.bounds().begin(),
                                                       now.bounds().end());
  if (alltoall_bounds_.empty()) alltoall_bounds_ = bounds;
  if (bounds != alltoall_bounds_) return;
  prometheus::Histogram& histogram =
      prometheus::BuildHistogram()
          .Name("portolan_alltoall_seconds")
          .Help("Exchange of a layer, without the computing of experts")
          .Register(registry_)
          .Add({}, bounds);
  std::vector<double> increments;
  for (int i = 0; i < now.counts_size(); ++i) {
    const uint64_t then = i < before.counts_size() ? before.counts(i) : 0;
    increments.push_back(
        now.counts(i) > then ? static_cast<double>(now.counts(i) - then) : 0);
  }
  histogram.ObserveMultiple(increments,
                            std::max(0.0, now.sum() - before.sum()));
}

void RankFigures::SetGauges(const std::string& job) {
  double resident = 0;
  std::vector<std::vector<uint64_t>> loads;
  for (const auto& [key, last] : ranks_) {
    resident += static_cast<double>(last.metrics.expert_resident_bytes());
    if (key.first != job) continue;
    loads.emplace_back(last.metrics.selections_by_layer().begin(),
                       last.metrics.selections_by_layer().end());
  }
  Gauge(registry_, "portolan_expert_cache_resident_bytes",
        "Bytes of experts in memory", {{"tier", "fast"}})
      .Set(resident);
  Gauge(registry_, "portolan_rank_imbalance_ratio",
        "Busiest rank over the mean, per layer, mean over layers",
        {{"job", job}})
      .Set(ImbalanceRatio(loads));
}

void RankFigures::Update(const std::string& job, int rank, uint64_t incarnation,
                         const v1::RankMetrics& metrics) {
  Last& last = ranks_[{job, rank}];
  if (last.incarnation != incarnation) last = {.incarnation = incarnation};
  const v1::RankMetrics& before = last.metrics;
  const auto count = [&](const char* name, const char* help, uint64_t then,
                         uint64_t now) {
    Count(name, help, {}, static_cast<double>(then), static_cast<double>(now));
  };
  count("portolan_prefix_cache_queries_total",
        "Prompt tokens looked up in the prefix cache",
        before.prefix_cache_queries(), metrics.prefix_cache_queries());
  count("portolan_prefix_cache_hits_total",
        "Prompt tokens found in the prefix cache", before.prefix_cache_hits(),
        metrics.prefix_cache_hits());
  count("portolan_num_preemptions_total", "Sequences that gave up their pages",
        before.preemptions(), metrics.preemptions());
  CountExperts(before, metrics);
  CountExchange(before, metrics);
  Gauge(registry_, "portolan_kv_cache_usage_perc",
        "Share of the KV pages that sequences hold, 0 .. 1",
        {{"job", job}, {"rank", std::to_string(rank)}})
      .Set(metrics.kv_cache_usage());
  last.metrics = metrics;
  SetGauges(job);
}

void RankFigures::Forget(const std::string& job, int rank) {
  const auto last = ranks_.find({job, rank});
  if (last == ranks_.end()) return;
  // The counters go on from here if the same process comes back.
  last->second.metrics.clear_expert_resident_bytes();
  Gauge(registry_, "portolan_kv_cache_usage_perc",
        "Share of the KV pages that sequences hold, 0 .. 1",
        {{"job", job}, {"rank", std::to_string(rank)}})
      .Set(0);
  SetGauges(job);
}

}  // namespace portolan
