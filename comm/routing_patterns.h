#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "comm/dispatch_plan.h"
#include "runtime/base/ids.h"

namespace portolan {

// Made-up routing for benchmarks.
enum class RoutingPattern {
  kUniform,       // every expert equally likely
  kZipf,          // expert i with probability ~ 1 / (i + 1)^s
  kAllToOne,      // only experts of rank 0, as far as it has top_k
  kOneEmptyRank,  // no expert of the last rank, which has no tokens either
};

// "uniform", "zipf", "all-to-one", "one-empty-rank".
// Errors: kInvalidArgument naming the choices.
absl::StatusOr<RoutingPattern> ParseRoutingPattern(absl::string_view name);
absl::string_view ToString(RoutingPattern pattern);

struct PatternOptions {
  RoutingPattern pattern = RoutingPattern::kUniform;
  double zipf_s = 1.2;
  int64_t num_tokens = 0;  // of this rank
  int32_t top_k = 0;       // at most the number of experts
  uint64_t seed = 0;
};

// A Routing with its memory.
struct MadeRouting {
  int64_t num_tokens = 0;
  int32_t top_k = 0;
  std::vector<int32_t> experts;
  std::vector<float> weights;

  Routing View() const { return {num_tokens, top_k, experts, weights}; }
};

// Draws top_k different experts per token for `rank`; weights sum to 1. The
// same bits on every machine.
MadeRouting MakeRouting(const PatternOptions& options,
                        std::span<const Rank> owner, int world_size, Rank rank);

}  // namespace portolan
