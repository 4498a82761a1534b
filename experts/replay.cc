#include "experts/replay.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "experts/memory_budget.h"
#include "experts/ownership.h"
#include "experts/policy_ablation.h"
#include "experts/policy_oracle.h"
#include "experts/replay_feed.h"
#include "experts/simulated_cache.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr std::string_view kOracle = "oracle";

// What PolicyDriver wants, also for a rank that owns one expert.
constexpr int64_t kMinSlots = 2;

// Each has a cache, predictors and links of its own.
constexpr int32_t kMaxRanks = 1024;

// As of --prefetch-distance.
constexpr int32_t kMaxDistance = 64;

PredictorShape PredictorShapeOf(const Trace& trace) {
  int64_t tokens = 1;
  for (const TraceStep& step : trace.steps) {
    tokens = std::max(tokens, step.num_tokens());
  }
  return {.num_layers = trace.header.num_layers,
          .num_experts = trace.header.num_experts,
          .top_k = trace.header.top_k,
          .hidden = trace.header.hidden,
          .max_step_tokens = static_cast<int32_t>(tokens)};
}

// As files are read: matrix by matrix, no more than 512 KiB at once. A load
// that would be more than a thousand chunks of these is simulated in larger
// ones, or each would take milliseconds.
int64_t ChunkBytes(const ReplayOptions& options, const TraceHeader& header) {
  if (options.chunk_bytes > 0) return options.chunk_bytes;
  constexpr int64_t kMostChunks = 1024;
  return std::max(std::min<int64_t>(512 << 10, (header.expert_bytes + 2) / 3),
                  (header.expert_bytes + kMostChunks - 1) / kMostChunks);
}

class Run {
 public:
  // `budgets`: of each rank; outlive the run.
  Run(const Trace& trace, std::string_view policy, const ReplayOptions& options,
      std::span<const MemoryBudget> budgets, const History* history);

  ReplayResult Play();

 private:
  struct Node {
    std::unique_ptr<SimulatedCache> cache = nullptr;
    std::unique_ptr<Predictor> predictor = nullptr;
    std::unique_ptr<ReplayFeed> feed = nullptr;
    std::vector<std::vector<Fp16>> hints = {};  // [distances][num_experts]
    std::vector<ExpertNeed> needs = {};
    int32_t first_expert = 0;
    int32_t end_expert = 0;
  };

  void BuildNodes(const PolicyOptions& options, const History* history);
  PolicyShape ShapeOf(const Node& node, int64_t num_slots) const;
  Future FutureOf(const Node& node) const;
  std::unique_ptr<CachePolicy> PolicyOf(const Node& node,
                                        const PolicyShape& shape,
                                        const History* history) const;
  void BeginStep(const TraceStep& step);
  void PlayLayer(const TraceStep& step, int32_t layer);
  void ForetellTruly(int32_t layer);
  void SendHints(int32_t layer, int32_t distance);
  void CollectNeeds(const TraceLayer& layer);
  absl::Duration RowTime(const TraceLayer& layer) const;
  void WaitForSlowest();
  void EndStep(const TraceStep& step, size_t index);
  ReplayResult Collect() const;

  const Trace& trace_;
  const TraceHeader& header_;
  const std::string name_;
  Ablation ablation_;
  const std::string_view policy_;  // of name_, without what is ablated
  const LinkSpec link_;
  const int64_t chunk_bytes_;
  const std::span<const MemoryBudget> budgets_;
  History history_;
  std::vector<Node> nodes_;
  std::vector<int32_t> counts_;
  std::vector<float> merged_;
  std::vector<std::vector<Fp16>> scores_;  // of each rank
  size_t step_ = 0;                        // in work
  absl::Duration compute_ = absl::ZeroDuration();
};

Run::Run(const Trace& trace, std::string_view policy,
         const ReplayOptions& options, std::span<const MemoryBudget> budgets,
         const History* history)
    : trace_(trace),
      header_(trace.header),
      name_(policy),
      policy_(SplitAblation(name_, ablation_)),
      link_(options.link),
      chunk_bytes_(ChunkBytes(options, trace.header)),
      budgets_(budgets),
      history_(
          history != nullptr
              ? *history
              : History(HistoryShapeOf(trace.header, options.policy.distance))),
      counts_(static_cast<size_t>(header_.num_experts)),
      merged_(static_cast<size_t>(header_.num_experts)) {
  nodes_.resize(budgets_.size());
  scores_.assign(nodes_.size(), std::vector<Fp16>(merged_.size()));
  BuildNodes(options.policy, history);
}

PolicyShape Run::ShapeOf(const Node& node, int64_t num_slots) const {
  PolicyShape shape{.num_layers = header_.num_layers,
                    .num_experts = header_.num_experts,
                    .top_k = header_.top_k,
                    .num_slots = static_cast<int32_t>(num_slots),
                    .expert_bytes = header_.expert_bytes};
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    for (int32_t e = node.first_expert; e < node.end_expert; ++e) {
      shape.owned.push_back({layer, e});
    }
  }
  return shape;
}

Future Run::FutureOf(const Node& node) const {
  Future future;
  for (const TraceStep& step : trace_.steps) {
    for (const TraceLayer& layer : step.layers) {
      std::vector<int32_t> experts(layer.experts.begin(), layer.experts.end());
      std::ranges::sort(experts);
      experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
      std::erase_if(experts, [&](int32_t e) {
        return e < node.first_expert || e >= node.end_expert;
      });
      future.visits.push_back(std::move(experts));
    }
  }
  return future;
}

std::unique_ptr<CachePolicy> Run::PolicyOf(const Node& node,
                                           const PolicyShape& shape,
                                           const History* history) const {
  if (policy_ == kOracle) return MakeOraclePolicy(shape, FutureOf(node));
  std::unique_ptr<CachePolicy> policy = MakePolicy(policy_, shape, history);
  if (!ablation_.any()) return policy;
  return MakeAblatedPolicy(ablation_, std::move(policy),
                           MakeOraclePolicy(shape, FutureOf(node)));
}

void Run::BuildNodes(const PolicyOptions& options, const History* history) {
  const PredictorShape shape = PredictorShapeOf(trace_);
  const auto num_ranks = static_cast<int32_t>(nodes_.size());
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    Node& node = nodes_[static_cast<size_t>(rank)];
    node.first_expert = FirstOwnedExpert(rank, num_ranks, header_.num_experts);
    node.end_expert =
        FirstOwnedExpert(rank + 1, num_ranks, header_.num_experts);
    node.feed = std::make_unique<ReplayFeed>(trace_, rank, num_ranks);
    const MemoryBudget& budget = budgets_[static_cast<size_t>(rank)];
    const PolicyShape cache =
        ShapeOf(node, std::max(kMinSlots, budget.num_slots));
    node.cache = std::make_unique<SimulatedCache>(
        cache, PolicyOf(node, cache, history), link_, chunk_bytes_);
    if (budget.resident()) node.cache->LoadAll();
    if (policy_ != kOracle) {
      node.predictor = MakePredictor(policy_, shape, options, history_);
    }
  }
}

void Run::BeginStep(const TraceStep& step) {
  for (Node& node : nodes_) {
    node.cache->driver().BeginStep(step.num_tokens(), node.cache->now());
    node.feed->BeginStep(step, node.predictor.get());
  }
  if (nodes_.front().predictor == nullptr) return;
  const int32_t reach =
      nodes_.front().predictor->step_layers(header_.num_layers);
  for (int32_t layer = 0; layer < reach; ++layer) SendHints(layer, layer + 1);
}

// Certainty for what a layer will need, of the next step beyond the last layer.
void Run::ForetellTruly(int32_t layer) {
  std::ranges::fill(merged_, 0.0f);
  const size_t step = step_ + static_cast<size_t>(layer / header_.num_layers);
  if (step >= trace_.steps.size()) return;
  const TraceStep& said = trace_.steps[step];
  for (const uint16_t expert :
       said.layers[static_cast<size_t>(layer % header_.num_layers)].experts) {
    merged_[expert] = static_cast<float>(said.num_tokens());
  }
}

void Run::SendHints(int32_t layer, int32_t distance) {
  std::vector<std::span<const Fp16>> sources;
  for (size_t rank = 0; rank < nodes_.size(); ++rank) {
    if (!nodes_[rank].feed->has_tokens()) continue;
    nodes_[rank].predictor->Predict(layer, distance, scores_[rank]);
    sources.push_back(scores_[rank]);
  }
  for (Node& node : nodes_) {
    if (ablation_.prediction) {
      ForetellTruly(layer);
    } else {
      MergeHints(node.cache->driver().policy().hint_merge(), sources, merged_);
    }
    node.cache->driver().OnHints(layer, distance, merged_, node.cache->now());
  }
}

void Run::CollectNeeds(const TraceLayer& layer) {
  std::ranges::fill(counts_, 0);
  for (const uint16_t expert : layer.experts) ++counts_[expert];
  for (Node& node : nodes_) {
    node.needs.clear();
    for (int32_t e = node.first_expert; e < node.end_expert; ++e) {
      const int32_t rows = counts_[static_cast<size_t>(e)];
      if (rows > 0) node.needs.push_back({.expert = e, .num_rows = rows});
    }
  }
}

// Time of one row of one expert, if the recorded ranks shared the rows evenly.
absl::Duration Run::RowTime(const TraceLayer& layer) const {
  if (layer.experts.empty()) return absl::ZeroDuration();
  return absl::Seconds(layer.experts_s) * header_.num_ranks /
         static_cast<double>(layer.experts.size());
}

void Run::PlayLayer(const TraceStep& step, int32_t layer) {
  const TraceLayer& said = step.layers[static_cast<size_t>(layer)];
  for (Node& node : nodes_) {
    node.cache->AdvanceTo(node.cache->now() + absl::Seconds(said.gate_s));
  }
  if (nodes_.front().predictor != nullptr) {
    for (Node& node : nodes_) {
      node.feed->Observe(step, layer, *node.predictor);
    }
    for (const int32_t distance : nodes_.front().predictor->distances()) {
      if (layer + distance >= header_.num_layers) break;
      SendHints(layer + distance, distance);
    }
  }
  CollectNeeds(said);
  const absl::Duration row_time = RowTime(said);
  absl::Duration longest = absl::ZeroDuration();
  for (Node& node : nodes_) {
    const absl::Time start = node.cache->now();
    const absl::Duration stall =
        node.cache->Compute(layer, node.needs, row_time);
    longest = std::max(longest, node.cache->now() - start - stall);
  }
  compute_ += absl::Seconds(said.gate_s) + longest;
  WaitForSlowest();
}

void Run::WaitForSlowest() {
  absl::Time latest = absl::InfinitePast();
  for (const Node& node : nodes_) latest = std::max(latest, node.cache->now());
  for (Node& node : nodes_) node.cache->AdvanceTo(latest);
}

void Run::EndStep(const TraceStep& step, size_t index) {
  for (Node& node : nodes_) {
    node.cache->AdvanceTo(node.cache->now() + absl::Seconds(step.tail_s));
    if (node.predictor != nullptr) node.feed->EndStep(index, *node.predictor);
  }
  compute_ += absl::Seconds(step.tail_s);
}

ReplayResult Run::Play() {
  for (size_t i = 0; i < trace_.steps.size(); ++i) {
    const TraceStep& step = trace_.steps[i];
    step_ = i;
    BeginStep(step);
    for (int32_t layer = 0; layer < header_.num_layers; ++layer) {
      PlayLayer(step, layer);
    }
    EndStep(step, i);
  }
  return Collect();
}

void MergePredictions(std::vector<PredictionMetrics> from,
                      std::vector<PredictionMetrics>& to) {
  if (to.empty()) {
    to = std::move(from);
    return;
  }
  for (size_t i = 0; i < std::min(from.size(), to.size()); ++i) {
    to[i].predicted += from[i].predicted;
    to[i].needed += from[i].needed;
    to[i].correct += from[i].correct;
  }
}

ReplayResult Run::Collect() const {
  ReplayResult result;
  int64_t slots = 0;
  int64_t owned = 0;
  for (const MemoryBudget& budget : budgets_) {
    slots += budget.num_slots;
    owned += budget.owned_slots;
  }
  result.budget = static_cast<double>(slots) / static_cast<double>(owned);
  const PolicyDriver& first = nodes_.front().cache->driver();
  result.policy = name_;
  result.notice = first.policy().notice();
  result.num_ranks = static_cast<int32_t>(nodes_.size());
  for (const Node& node : nodes_) {
    result.ranks.push_back(node.cache->metrics());
    result.total.Merge(result.ranks.back());
    result.loads += node.cache->loads();
    if (node.predictor != nullptr) {
      MergePredictions(node.predictor->metrics(), result.predictions);
    }
  }
  result.time = nodes_.front().cache->now() - absl::UnixEpoch();
  result.compute = compute_;
  return result;
}

absl::StatusOr<std::vector<MemoryBudget>> BudgetsOf(
    const ReplayOptions& options, const TraceHeader& header) {
  std::vector<MemoryBudget> budgets;
  for (int32_t rank = 0; rank < options.num_ranks; ++rank) {
    const int64_t experts =
        FirstOwnedExpert(rank + 1, options.num_ranks, header.num_experts) -
        FirstOwnedExpert(rank, options.num_ranks, header.num_experts);
    PORTOLAN_ASSIGN_OR_RETURN(
        const MemoryBudget budget,
        PlanExpertMemory(options.expert_memory, experts * header.num_layers,
                         header.expert_bytes));
    budgets.push_back(budget);
  }
  return budgets;
}

}  // namespace

double ReplayResult::LostPerToken() const {
  return total.tokens == 0 ? 0.0
                           : absl::ToDoubleSeconds(lost()) /
                                 static_cast<double>(total.tokens);
}

absl::Status CheckReplay(const TraceHeader& header, std::string_view policy,
                         const ReplayOptions& options) {
  Ablation ablation;
  const std::string_view name = SplitAblation(policy, ablation);
  if (name != kOracle) PORTOLAN_RETURN_IF_ERROR(CheckPolicyName(name));
  if (options.num_ranks < 1 || options.num_ranks > kMaxRanks) {
    return absl::InvalidArgumentError(
        absl::StrCat("--ranks ", options.num_ranks, ": give 1 to ", kMaxRanks));
  }
  if (options.policy.distance < 1 || options.policy.distance > kMaxDistance) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--distance ", options.policy.distance, ": give 1 to ", kMaxDistance,
        ", the layers ahead that fmoe and eam foretell"));
  }
  if (options.link.bytes_per_second <= 0) {
    return absl::InvalidArgumentError(
        "replay needs a link: give --link, for example 1GB/s,50us");
  }
  return BudgetsOf(options, header).status();
}

absl::StatusOr<ReplayResult> Replay(const Trace& trace, std::string_view policy,
                                    const ReplayOptions& options,
                                    const History* history) {
  PORTOLAN_RETURN_IF_ERROR(CheckReplay(trace.header, policy, options));
  const HistoryShape shape =
      history != nullptr
          ? history->shape()
          : HistoryShapeOf(trace.header, options.policy.distance);
  PORTOLAN_RETURN_IF_ERROR(CheckSameModel("the trace", trace.header, shape));
  PORTOLAN_RETURN_IF_ERROR(CheckHistoryFits(shape));
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<MemoryBudget> budgets,
                            BudgetsOf(options, trace.header));
  return Run(trace, policy, options, budgets, history).Play();
}

absl::Status LearnTrace(const Trace& trace, std::string_view policy,
                        const PolicyOptions& options, History& history) {
  PORTOLAN_RETURN_IF_ERROR(CheckPolicyName(policy));
  PORTOLAN_RETURN_IF_ERROR(
      CheckSameModel("the trace", trace.header, history.shape()));
  const std::unique_ptr<Predictor> predictor =
      MakePredictor(policy, PredictorShapeOf(trace), options, history);
  if (predictor == nullptr) return absl::OkStatus();
  ReplayFeed feed(trace, 0, 1);
  for (size_t i = 0; i < trace.steps.size(); ++i) {
    const TraceStep& step = trace.steps[i];
    feed.BeginStep(step, predictor.get());
    for (int32_t layer = 0; layer < trace.header.num_layers; ++layer) {
      feed.Observe(step, layer, *predictor);
    }
    feed.EndStep(i, *predictor);
  }
  return absl::OkStatus();
}

}  // namespace portolan
