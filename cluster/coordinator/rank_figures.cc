#include "cluster/coordinator/rank_figures.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <algorithm>

namespace portolan {
namespace {

using Labels = std::map<std::string, std::string>;

// More ranks than that which are gone are not remembered: one that comes back
// later counts twice what it had counted.
constexpr size_t kMaxGone = 1024;

constexpr char kUsage[] = "portolan_kv_cache_usage_perc";
constexpr char kUsageHelp[] =
    "Share of the KV pages that sequences hold, 0 .. 1";
constexpr char kConfig[] = "portolan_cache_config_info";
constexpr char kConfigHelp[] = "How the KV cache of a rank is made; always 1";
constexpr char kImbalance[] = "portolan_rank_imbalance_ratio";
constexpr char kImbalanceHelp[] =
    "Busiest rank over the mean, per layer, mean over layers";

prometheus::Family<prometheus::Gauge>& Gauges(prometheus::Registry& registry,
                                              const char* name,
                                              const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}

void EndSeries(prometheus::Family<prometheus::Gauge>& family,
               const Labels& labels) {
  if (family.Has(labels)) family.Remove(&family.Add(labels));
}

Labels LabelsOf(const RankIdentity& rank) {
  return {{"job", rank.job},
          {"rank", std::to_string(rank.rank)},
          {"model_name", rank.model_name}};
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

void RankFigures::CountExperts(const std::string& model,
                               const v1::RankMetrics& before,
                               const v1::RankMetrics& now) {
  const auto count = [&](const char* name, const char* help, Labels labels,
                         uint64_t then, uint64_t today) {
    labels["model_name"] = model;
    Count(name, help, labels, static_cast<double>(then),
          static_cast<double>(today));
  };
  const auto requests = [&](const char* result, uint64_t then, uint64_t today) {
    count("portolan_expert_cache_requests_total",
          "Experts that were needed, by whether they were in memory",
          {{"tier", "fast"}, {"result", result}}, then, today);
  };
  requests("hit", before.expert_hits(), now.expert_hits());
  requests("late", before.expert_late(), now.expert_late());
  requests("miss", before.expert_misses(), now.expert_misses());
  const auto loaded = [](const v1::RankMetrics& m) {
    return m.expert_demand_bytes() + m.expert_prefetch_used_bytes() +
           m.expert_prefetch_wasted_bytes();
  };
  count("portolan_expert_load_bytes_total", "Bytes of experts that were read",
        {{"from", "disk"}, {"to", "fast"}}, loaded(before), loaded(now));
  const auto bytes = [&](const char* outcome, uint64_t then, uint64_t today) {
    count("portolan_expert_prefetch_bytes_total",
          "Bytes of experts that were read ahead", {{"outcome", outcome}}, then,
          today);
  };
  bytes("used", before.expert_prefetch_used_bytes(),
        now.expert_prefetch_used_bytes());
  bytes("wasted", before.expert_prefetch_wasted_bytes(),
        now.expert_prefetch_wasted_bytes());
  const auto ahead = [&](const char* outcome, uint64_t then, uint64_t today) {
    count("portolan_expert_prefetch_total",
          "Experts that were read ahead: complete when needed, on their way, "
          "or given up unneeded",
          {{"outcome", outcome}}, then, today);
  };
  ahead("used", before.expert_prefetches_used(), now.expert_prefetches_used());
  ahead("late", before.expert_prefetches_late(), now.expert_prefetches_late());
  ahead("wasted", before.expert_prefetches_wasted(),
        now.expert_prefetches_wasted());
  Count("portolan_expert_load_stall_seconds_total",
        "Time that ranks waited for experts", {{"model_name", model}},
        before.expert_stall_s(), now.expert_stall_s());
  CountHistogram("portolan_expert_map_match_score",
                 "Cosine of the best match of a search for an expert map",
                 model, before.expert_map_match_score(),
                 now.expert_map_match_score());
}

void RankFigures::CountExchange(const std::string& model,
                                const v1::RankMetrics& before,
                                const v1::RankMetrics& now) {
  const auto bytes = [&](const char* direction, uint64_t then, uint64_t today) {
    Count("portolan_dispatch_bytes_total", "Bytes that ranks exchanged",
          {{"direction", direction}, {"model_name", model}},
          static_cast<double>(then), static_cast<double>(today));
  };
  bytes("out", before.dispatch_bytes_out(), now.dispatch_bytes_out());
  bytes("in", before.dispatch_bytes_in(), now.dispatch_bytes_in());
  CountHistogram("portolan_alltoall_seconds",
                 "Exchange of a layer, without the computing of experts", model,
                 before.alltoall_s(), now.alltoall_s());
}

void RankFigures::CountHistogram(const char* name, const char* help,
                                 const std::string& model,
                                 const v1::Histogram& before,
                                 const v1::Histogram& now) {
  const bool whole = now.counts_size() == now.bounds_size() + 1 &&
                     std::is_sorted(now.bounds().begin(), now.bounds().end());
  if (!whole || now.bounds().empty()) return;
  const std::vector<double> bounds(now.bounds().begin(), now.bounds().end());
  if (bounds_.try_emplace({name, model}, bounds).first->second != bounds) {
    return;
  }
  prometheus::Histogram& histogram = prometheus::BuildHistogram()
                                         .Name(name)
                                         .Help(help)
                                         .Register(registry_)
                                         .Add({{"model_name", model}}, bounds);
  std::vector<double> increments;
  for (int i = 0; i < now.counts_size(); ++i) {
    const uint64_t then = i < before.counts_size() ? before.counts(i) : 0;
    increments.push_back(
        now.counts(i) > then ? static_cast<double>(now.counts(i) - then) : 0);
  }
  histogram.ObserveMultiple(increments,
                            std::max(0.0, now.sum() - before.sum()));
}

void RankFigures::SetImbalance(const RankIdentity& changed) {
  const Labels labels = {{"job", changed.job},
                         {"model_name", changed.model_name}};
  std::vector<std::vector<uint64_t>> loads;
  for (const auto& [key, last] : ranks_) {
    if (key.first != changed.job || !last.attached) continue;
    loads.emplace_back(last.metrics.selections_by_layer().begin(),
                       last.metrics.selections_by_layer().end());
  }
  auto& family = Gauges(registry_, kImbalance, kImbalanceHelp);
  if (loads.empty()) {
    EndSeries(family, labels);
  } else {
    family.Add(labels).Set(ImbalanceRatio(loads));
  }
}

void RankFigures::SetGauges(const RankIdentity& changed) {
  double resident = 0;
  for (const auto& [key, last] : ranks_) {
    if (!last.attached || last.identity.model_name != changed.model_name) {
      continue;
    }
    resident += static_cast<double>(last.metrics.expert_resident_bytes());
  }
  Gauges(registry_, "portolan_expert_cache_resident_bytes",
         "Bytes of experts in memory")
      .Add({{"tier", "fast"}, {"model_name", changed.model_name}})
      .Set(resident);
  SetImbalance(changed);
}

RankFigures::Last& RankFigures::Find(const RankIdentity& rank) {
  const Key key{rank.job, rank.rank};
  const auto known = ranks_.find(key);
  if (known != ranks_.end() &&
      known->second.identity.incarnation != rank.incarnation) {
    Forget(rank.job, rank.rank);
    ranks_.erase(key);
  }
  Last& last = ranks_.try_emplace(key, Last{.identity = rank}).first->second;
  last.attached = true;
  std::erase(gone_, key);
  return last;
}

void RankFigures::Attach(const RankIdentity& rank,
                         const v1::Capacity& capacity) {
  Last& last = Find(rank);
  if (capacity.kv_page_tokens() == 0) return;
  auto& family = Gauges(registry_, kConfig, kConfigHelp);
  if (!last.config.empty()) EndSeries(family, last.config);
  last.config = LabelsOf(rank);
  last.config["fingerprint"] = rank.fingerprint;
  last.config["block_size"] = std::to_string(capacity.kv_page_tokens());
  last.config["num_blocks"] =
      std::to_string(capacity.kv_tokens() / capacity.kv_page_tokens());
  last.config["cache_dtype"] = capacity.kv_dtype();
  family.Add(last.config).Set(1);
}

void RankFigures::Update(const RankIdentity& rank,
                         const v1::RankMetrics& metrics) {
  Last& last = Find(rank);
  const v1::RankMetrics& before = last.metrics;
  const std::string& model = rank.model_name;
  const auto count = [&](const char* name, const char* help, uint64_t then,
                         uint64_t now) {
    Count(name, help, {{"model_name", model}}, static_cast<double>(then),
          static_cast<double>(now));
  };
  count("portolan_prefix_cache_queries_total",
        "Prompt tokens looked up in the prefix cache",
        before.prefix_cache_queries(), metrics.prefix_cache_queries());
  count("portolan_prefix_cache_hits_total",
        "Prompt tokens found in the prefix cache", before.prefix_cache_hits(),
        metrics.prefix_cache_hits());
  count("portolan_num_preemptions_total", "Sequences that gave up their pages",
        before.preemptions(), metrics.preemptions());
  CountHistogram("portolan_iteration_tokens_total",
                 "Tokens of a step, over all ranks of a job", model,
                 before.step_tokens(), metrics.step_tokens());
  CountExperts(model, before, metrics);
  CountExchange(model, before, metrics);
  Gauges(registry_, kUsage, kUsageHelp)
      .Add(LabelsOf(rank))
      .Set(metrics.kv_cache_usage());
  last.metrics = metrics;
  SetGauges(rank);
}

void RankFigures::Forget(const std::string& job, int rank) {
  const auto known = ranks_.find({job, rank});
  if (known == ranks_.end() || !known->second.attached) return;
  Last& last = known->second;
  last.attached = false;
  gone_.push_back(known->first);
  const RankIdentity identity = last.identity;
  EndSeries(Gauges(registry_, kUsage, kUsageHelp), LabelsOf(identity));
  if (!last.config.empty()) {
    EndSeries(Gauges(registry_, kConfig, kConfigHelp), last.config);
    last.config.clear();
  }
  SetGauges(identity);
  ForgetOldest();
}

void RankFigures::ForgetOldest() {
  if (gone_.size() <= kMaxGone) return;
  ranks_.erase(gone_.front());
  gone_.erase(gone_.begin());
}

}  // namespace portolan
