#include "experts/trace_join.h"

#include <algorithm>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

bool SameModel(const TraceHeader& a, const TraceHeader& b) {
  return a.num_layers == b.num_layers && a.num_experts == b.num_experts &&
         a.top_k == b.top_k && a.hidden == b.hidden &&
         a.fingerprint == b.fingerprint;
}

// What differs between the headers of files that belong together; else empty.
std::string Difference(const TraceHeader& a, const TraceHeader& b) {
  if (!SameModel(a, b)) return "are of different models";
  if (a.numerics_id != b.numerics_id) return "are of unlike numerics";
  if (a.expert_bytes != b.expert_bytes) return "have experts of unlike sizes";
  if (a.lookahead != b.lookahead) return "hold unlike look-aheads of the gates";
  if (a.num_ranks != b.num_ranks) return "are of unlike numbers of ranks";
  return "";
}

// That wrote the trace; nullopt if it had no tokens.
std::optional<int32_t> RankOf(const Trace& trace) {
  for (const TraceStep& step : trace.steps) {
    if (!step.slices.empty()) return step.slices.front().rank;
  }
  return std::nullopt;
}

template <typename T>
void AppendTo(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

void Merge(const TraceStep& from, TraceStep& to) {
  to.step = from.step;
  to.tail_s = std::max(to.tail_s, from.tail_s);
  AppendTo(to.slices, from.slices);
  AppendTo(to.token_ids, from.token_ids);
  AppendTo(to.contexts, from.contexts);
  const bool first = to.layers.empty();
  to.layers.resize(from.layers.size());
  for (size_t i = 0; i < from.layers.size(); ++i) {
    TraceLayer& layer = to.layers[i];
    const TraceLayer& other = from.layers[i];
    layer.gate_s = std::max(layer.gate_s, other.gate_s);
    // A rank's time holds its waiting for the others, who may be waiting for
    // experts; the one that kept them all waiting has the least.
    layer.experts_s =
        first ? other.experts_s : std::min(layer.experts_s, other.experts_s);
    AppendTo(layer.probabilities, other.probabilities);
    AppendTo(layer.ahead1, other.ahead1);
    AppendTo(layer.ahead2, other.ahead2);
    AppendTo(layer.experts, other.experts);
    AppendTo(layer.weights, other.weights);
  }
}

// The files of one run.
absl::StatusOr<Trace> MergeRanks(std::span<NamedTrace> files) {
  if (files.size() == 1) return std::move(files.front().trace);
  Trace merged{.header = files.front().trace.header};
  std::map<int64_t, TraceStep> steps;
  std::map<int32_t, std::string> names;
  for (NamedTrace& file : files) {
    if (const std::optional<int32_t> rank = RankOf(file.trace)) {
      const auto [known, is_new] = names.emplace(*rank, file.name);
      if (!is_new) {
        return absl::InvalidArgumentError(absl::StrCat(
            known->second, " and ", file.name, " are both of rank ", *rank,
            ": name the files of a run together, one of each of its ",
            merged.header.num_ranks, " ranks"));
      }
    }
    for (const TraceStep& step : file.trace.steps) {
      Merge(step, steps[step.step]);
    }
    merged.embeddings.merge(file.trace.embeddings);
    merged.torn_bytes += file.trace.torn_bytes;
  }
  for (auto& [number, step] : steps) merged.steps.push_back(std::move(step));
  return merged;
}

// The next number; one that no run counts to may wrap.
int64_t After(int64_t number) {
  return static_cast<int64_t>(static_cast<uint64_t>(number) + 1);
}

// Puts a run behind `all`.
void Append(Trace run, Trace& all) {
  int64_t next_step = 0;
  int64_t next_sequence = 0;
  for (const TraceStep& step : all.steps) {
    next_step = std::max(next_step, After(step.step));
    for (const TraceSlice& slice : step.slices) {
      next_sequence = std::max(next_sequence, After(slice.sequence));
    }
  }
  std::map<int64_t, int64_t> sequences;
  for (TraceStep& step : run.steps) {
    step.step = static_cast<int64_t>(static_cast<uint64_t>(step.step) +
                                     static_cast<uint64_t>(next_step));
    for (TraceSlice& slice : step.slices) {
      slice.sequence =
          sequences
              .emplace(slice.sequence, next_sequence + std::ssize(sequences))
              .first->second;
    }
    all.steps.push_back(std::move(step));
  }
  all.embeddings.merge(run.embeddings);
  all.torn_bytes += run.torn_bytes;
}

}  // namespace

absl::StatusOr<Trace> JoinTraces(std::vector<NamedTrace> files) {
  if (files.empty()) return absl::InvalidArgumentError("no trace is given");
  const TraceHeader& first = files.front().trace.header;
  for (const NamedTrace& file : files) {
    const std::string difference = Difference(file.trace.header, first);
    if (difference.empty()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(files.front().name, " and ", file.name, " ", difference,
                     ": they cannot be one trace"));
  }
  const auto ranks = static_cast<size_t>(std::max(1, first.num_ranks));
  if (files.size() % ranks != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        files.front().name, " is of a run of ", ranks,
        " ranks, which wrote a file each (FILE.0, FILE.1 ...): name all of "
        "them; there are ",
        files.size()));
  }
  PORTOLAN_ASSIGN_OR_RETURN(Trace all,
                            MergeRanks(std::span(files).first(ranks)));
  for (size_t i = ranks; i < files.size(); i += ranks) {
    PORTOLAN_ASSIGN_OR_RETURN(Trace run,
                              MergeRanks(std::span(files).subspan(i, ranks)));
    Append(std::move(run), all);
  }
  return all;
}

}  // namespace portolan
