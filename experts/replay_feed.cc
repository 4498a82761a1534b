#include "experts/replay_feed.h"

#include <algorithm>
#include <iterator>

namespace portolan {
namespace {

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

}  // namespace

ReplayFeed::ReplayFeed(const Trace& trace, int32_t rank, int32_t num_ranks)
    : trace_(trace), rank_(rank), num_ranks_(num_ranks) {
  for (size_t i = 0; i < trace.steps.size(); ++i) {
    for (const TraceSlice& slice : trace.steps[i].slices) {
      last_step_[slice.sequence] = i;
    }
  }
}

void ReplayFeed::Select(const TraceStep& step) {
  rows_.clear();
  slices_.clear();
  embeddings_.clear();
  const std::vector<Fp16> unknown(static_cast<size_t>(trace_.header.hidden));
  int64_t row = 0;
  for (const TraceSlice& slice : step.slices) {
    const int64_t first = row;
    row += slice.num_tokens;
    const auto owner =
        static_cast<int32_t>(static_cast<uint64_t>(slice.sequence) %
                             static_cast<uint64_t>(num_ranks_));
    if (owner != rank_) continue;
    const auto ids = std::span(step.token_ids)
                         .subspan(static_cast<size_t>(first),
                                  static_cast<size_t>(slice.num_tokens));
    slices_.push_back({.sequence = slice.sequence,
                       .first_position = slice.first_position,
                       .token_ids = ids});
    for (size_t i = 0; i < ids.size(); ++i) {
      rows_.push_back(first + static_cast<int64_t>(i));
      const auto found = trace_.embeddings.find(ids[i]);
      const auto& from =
          found == trace_.embeddings.end() ? unknown : found->second;
      std::ranges::transform(from, std::back_inserter(embeddings_),
                             [](Fp16 value) { return ToFloat(value); });
    }
  }
}

void ReplayFeed::BeginStep(const TraceStep& step, Predictor* predictor) {
  Select(step);
  if (predictor == nullptr || !has_tokens()) return;
  predictor->BeginStep({.slices = slices_,
                        .embeddings = View(embeddings_, trace_.header.hidden)});
}

void ReplayFeed::Observe(const TraceStep& step, int32_t layer,
                         Predictor& predictor) {
  if (!has_tokens()) return;
  const TraceLayer& said = step.layers[static_cast<size_t>(layer)];
  const int64_t cols = trace_.header.num_experts;
  const int32_t lookahead = predictor.lookahead();
  GatherRows(said.probabilities, cols, rows_, probabilities_);
  ahead1_.clear();
  ahead2_.clear();
  if (lookahead >= 1) GatherRows(said.ahead1, cols, rows_, ahead1_);
  if (lookahead >= 2) GatherRows(said.ahead2, cols, rows_, ahead2_);
  experts_.clear();
  for (const int64_t row : rows_) {
    const auto begin = said.experts.begin() + row * trace_.header.top_k;
    experts_.insert(experts_.end(), begin, begin + trace_.header.top_k);
  }
  predictor.Observe({.layer = layer,
                     .probabilities = View(probabilities_, cols),
                     .experts = experts_,
                     .ahead1 = View(ahead1_, cols),
                     .ahead2 = View(ahead2_, cols)});
}

void ReplayFeed::EndStep(size_t index, Predictor& predictor) {
  if (!has_tokens()) return;
  predictor.EndStep();
  for (const SequenceSlice& slice : slices_) {
    if (last_step_.at(slice.sequence) == index) {
      predictor.EndSequence(slice.sequence);
    }
  }
}

}  // namespace portolan
