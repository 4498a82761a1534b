#include "experts/replay.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "experts/memory_budget.h"
#include "experts/policy_oracle.h"
#include "experts/simulated_cache.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr std::string_view kOracle = "oracle";

// The rows of a step that one rank serves, widened to f32.
struct RankTokens {
  std::vector<int64_t> rows = {};  // of the step
  std::vector<SequenceSlice> slices = {};
  std::vector<int32_t> token_ids = {};
  std::vector<float> embeddings = {};
};

void GatherRows(const std::vector<Fp16>& from, int64_t cols,
                std::span<const int64_t> rows, std::vector<float>& to) {
  to.clear();
  if (from.empty()) return;
  for (const int64_t row : rows) {
    const auto begin = from.begin() + row * cols;
    std::transform(begin, begin + cols, std::back_inserter(to),
                   [](Fp16 value) { return ToFloat(value); });
  }
}

MatrixView<const float> View(const std::vector<float>& data, int64_t cols) {
  return {data, cols == 0 ? 0 : std::ssize(data) / cols, cols};
}

class Run {
 public:
  Run(const Trace& trace, std::string_view policy, const ReplayOptions& options,
      int64_t num_slots, const History* history);

  ReplayResult Play();

 private:
  struct Node {
    std::unique_ptr<SimulatedCache> cache = nullptr;
    std::unique_ptr<Predictor> predictor = nullptr;
    RankTokens tokens = {};
    std::vector<std::vector<Fp16>> hints = {};  // [distances][num_experts]
    std::vector<ExpertNeed> needs = {};
    int32_t first_expert = 0;
    int32_t end_expert = 0;
  };

  void BuildNodes(std::string_view policy, const PolicyOptions& options,
                  int64_t num_slots, const History* history);
  PolicyShape ShapeOf(const Node& node, int64_t num_slots) const;
  Future FutureOf(const Node& node) const;
  void FindLastSteps();

  int32_t RankOf(int64_t sequence) const {
    return static_cast<int32_t>(static_cast<uint64_t>(sequence) %
                                nodes_.size());
  }
  void BeginStep(const TraceStep& step);
  void AssignTokens(const TraceStep& step);
  void PlayLayer(const TraceStep& step, int32_t layer);
  void Observe(const TraceStep& step, int32_t layer, Node& node);
  void SendHints(int32_t layer, int32_t distance);
  void CollectNeeds(const TraceLayer& layer);
  absl::Duration RowTime(const TraceLayer& layer) const;
  void WaitForSlowest();
  void EndStep(const TraceStep& step, size_t index);
  ReplayResult Collect() const;

  const Trace& trace_;
  const TraceHeader& header_;
  const LinkSpec link_;
  const int64_t chunk_bytes_;
  History history_;
  std::vector<Node> nodes_;
  absl::flat_hash_map<int64_t, size_t> last_step_;  // of a sequence
  std::vector<float> probabilities_, ahead1_, ahead2_;
  std::vector<int32_t> experts_;
  std::vector<int32_t> counts_;
  std::vector<float> merged_;
  std::vector<std::vector<Fp16>> scores_;  // of each rank
  absl::Duration compute_ = absl::ZeroDuration();
};

Run::Run(const Trace& trace, std::string_view policy,
         const ReplayOptions& options, int64_t num_slots,
         const History* history)
    : trace_(trace),
      header_(trace.header),
      link_(options.link),
      chunk_bytes_(options.chunk_bytes),
      history_(history != nullptr ? *history
                                  : History(HistoryShapeOf(trace.header))),
      counts_(static_cast<size_t>(header_.num_experts)),
      merged_(static_cast<size_t>(header_.num_experts)) {
  nodes_.resize(static_cast<size_t>(options.num_ranks));
  scores_.assign(nodes_.size(), std::vector<Fp16>(merged_.size()));
  FindLastSteps();
  BuildNodes(policy, options.policy, num_slots, history);
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
      const auto repeated = std::ranges::unique(experts);
      experts.erase(repeated.begin(), repeated.end());
      std::erase_if(experts, [&](int32_t e) {
        return e < node.first_expert || e >= node.end_expert;
      });
      future.visits.push_back(std::move(experts));
    }
  }
  return future;
}

void Run::FindLastSteps() {
  for (size_t i = 0; i < trace_.steps.size(); ++i) {
    for (const TraceSlice& slice : trace_.steps[i].slices) {
      last_step_[slice.sequence] = i;
    }
  }
}

int32_t MaxStepTokens(const Trace& trace) {
  int64_t tokens = 1;
  for (const TraceStep& step : trace.steps) {
    tokens = std::max(tokens, step.num_tokens());
  }
  return static_cast<int32_t>(tokens);
}

void Run::BuildNodes(std::string_view policy, const PolicyOptions& options,
                     int64_t num_slots, const History* history) {
  const PredictorShape shape{.num_layers = header_.num_layers,
                             .num_experts = header_.num_experts,
                             .top_k = header_.top_k,
                             .hidden = header_.hidden,
                             .max_step_tokens = MaxStepTokens(trace_)};
  const auto num_ranks = static_cast<int32_t>(nodes_.size());
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    Node& node = nodes_[static_cast<size_t>(rank)];
    node.first_expert = FirstOwnedExpert(rank, num_ranks, header_.num_experts);
    node.end_expert =
        FirstOwnedExpert(rank + 1, num_ranks, header_.num_experts);
    const PolicyShape cache = ShapeOf(node, num_slots);
    node.cache = std::make_unique<SimulatedCache>(
        cache,
        policy == kOracle ? MakeOraclePolicy(cache, FutureOf(node))
                          : MakePolicy(policy, cache, options, history),
        link_, chunk_bytes_);
    if (policy != kOracle) {
      node.predictor = MakePredictor(policy, shape, options, history_);
    }
  }
}

void Run::AssignTokens(const TraceStep& step) {
  for (Node& node : nodes_) node.tokens = {};
  int64_t row = 0;
  for (const TraceSlice& slice : step.slices) {
    RankTokens& tokens =
        nodes_[static_cast<size_t>(RankOf(slice.sequence))].tokens;
    const std::span<const int32_t> ids =
        std::span(step.token_ids)
            .subspan(static_cast<size_t>(row),
                     static_cast<size_t>(slice.num_tokens));
    tokens.slices.push_back({.sequence = slice.sequence,
                             .first_position = slice.first_position,
                             .token_ids = ids});
    for (const int32_t id : ids) {
      tokens.rows.push_back(row++);
      const auto found = trace_.embeddings.find(id);
      for (int32_t i = 0; i < header_.hidden; ++i) {
        tokens.embeddings.push_back(
            found == trace_.embeddings.end()
                ? 0.0f
                : ToFloat(found->second[static_cast<size_t>(i)]));
      }
    }
  }
}

void Run::BeginStep(const TraceStep& step) {
  AssignTokens(step);
  for (Node& node : nodes_) {
    node.cache->driver().BeginStep(step.num_tokens(), node.cache->now());
    if (node.predictor == nullptr || node.tokens.rows.empty()) continue;
    node.predictor->BeginStep(
        {.slices = node.tokens.slices,
         .embeddings = View(node.tokens.embeddings, header_.hidden)});
  }
  if (nodes_.front().predictor == nullptr) return;
  const int32_t reach = nodes_.front().predictor->distances().back();
  for (int32_t layer = 0; layer < reach; ++layer) {
    SendHints(layer, layer + 1);
  }
}

void Run::SendHints(int32_t layer, int32_t distance) {
  std::vector<std::span<const Fp16>> sources;
  for (size_t rank = 0; rank < nodes_.size(); ++rank) {
    if (nodes_[rank].tokens.rows.empty()) continue;
    nodes_[rank].predictor->Predict(layer, distance, scores_[rank]);
    sources.push_back(scores_[rank]);
  }
  for (Node& node : nodes_) {
    MergeHints(node.cache->driver().policy().hint_merge(), sources, merged_);
    node.cache->driver().OnHints(layer, distance, merged_, node.cache->now());
  }
}

void Run::Observe(const TraceStep& step, int32_t layer, Node& node) {
  const TraceLayer& said = step.layers[static_cast<size_t>(layer)];
  const int64_t cols = header_.num_experts;
  GatherRows(said.probabilities, cols, node.tokens.rows, probabilities_);
  const int32_t lookahead = node.predictor->lookahead();
  GatherRows(lookahead >= 1 ? said.ahead1 : std::vector<Fp16>(), cols,
             node.tokens.rows, ahead1_);
  GatherRows(lookahead >= 2 ? said.ahead2 : std::vector<Fp16>(), cols,
             node.tokens.rows, ahead2_);
  experts_.clear();
  for (const int64_t row : node.tokens.rows) {
    const auto begin = said.experts.begin() + row * header_.top_k;
    experts_.insert(experts_.end(), begin, begin + header_.top_k);
  }
  node.predictor->Observe({.layer = layer,
                           .probabilities = View(probabilities_, cols),
                           .experts = experts_,
                           .ahead1 = View(ahead1_, cols),
                           .ahead2 = View(ahead2_, cols)});
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
      if (!node.tokens.rows.empty()) Observe(step, layer, node);
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
    if (node.predictor == nullptr || node.tokens.rows.empty()) continue;
    node.predictor->EndStep();
    for (const SequenceSlice& slice : node.tokens.slices) {
      if (last_step_.at(slice.sequence) != index) continue;
      node.predictor->EndSequence(slice.sequence);
    }
  }
  compute_ += absl::Seconds(step.tail_s);
}

ReplayResult Run::Play() {
  for (size_t i = 0; i < trace_.steps.size(); ++i) {
    const TraceStep& step = trace_.steps[i];
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
  const PolicyDriver& first = nodes_.front().cache->driver();
  result.policy = first.policy().name();
  result.notice = first.policy().notice();
  result.num_ranks = static_cast<int32_t>(nodes_.size());
  for (const Node& node : nodes_) {
    result.ranks.push_back(node.cache->driver().metrics());
    result.total.Merge(result.ranks.back());
    if (node.predictor != nullptr) {
      MergePredictions(node.predictor->metrics(), result.predictions);
    }
  }
  result.time = nodes_.front().cache->now() - absl::UnixEpoch();
  result.compute = compute_;
  return result;
}

}  // namespace

int32_t FirstOwnedExpert(int32_t rank, int32_t num_ranks, int32_t num_experts) {
  // The first e with e * num_ranks / num_experts >= rank.
  return static_cast<int32_t>(
      (static_cast<int64_t>(rank) * num_experts + num_ranks - 1) / num_ranks);
}

absl::StatusOr<ReplayResult> Replay(const Trace& trace, std::string_view policy,
                                    const ReplayOptions& options,
                                    const History* history) {
  if (policy != kOracle) PORTOLAN_RETURN_IF_ERROR(CheckPolicyName(policy));
  if (options.num_ranks < 1 || options.num_ranks > trace.header.num_experts) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--ranks ", options.num_ranks, " for ", trace.header.num_experts,
        " experts: give 1 to as many ranks as experts"));
  }
  if (options.link.bytes_per_second <= 0) {
    return absl::InvalidArgumentError(
        "replay needs a link: give --link, for example 1GB/s,50us");
  }
  const int64_t owned = static_cast<int64_t>(trace.header.num_layers) *
                        trace.header.num_experts / options.num_ranks;
  PORTOLAN_ASSIGN_OR_RETURN(const MemoryBudget budget,
                            PlanExpertMemory(options.expert_memory, owned,
                                             trace.header.expert_bytes));
  return Run(trace, policy, options, std::max<int64_t>(2, budget.num_slots),
             history)
      .Play();
}

}  // namespace portolan
