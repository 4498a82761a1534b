#include "comm/routing_patterns.h"

#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"

namespace portolan {
namespace {

constexpr RoutingPattern kPatterns[] = {
    RoutingPattern::kUniform, RoutingPattern::kZipf, RoutingPattern::kAllToOne,
    RoutingPattern::kOneEmptyRank};

// In [0, 1). The distributions of <random> differ between libraries.
double Uniform(std::mt19937_64& random) {
  return static_cast<double>(random() >> 11) * 0x1p-53;
}

// Likelihood of each expert. Those that a pattern shuns come last, when the
// others are used up.
std::vector<double> Likelihoods(const PatternOptions& options,
                                std::span<const Rank> owner, int world_size) {
  constexpr double kShunned = 1e-12;
  std::vector<double> likelihoods(owner.size(), 1.0);
  for (size_t expert = 0; expert < owner.size(); ++expert) {
    double& likelihood = likelihoods[expert];
    switch (options.pattern) {
      case RoutingPattern::kUniform:
        break;
      case RoutingPattern::kZipf:
        likelihood =
            1 / std::pow(static_cast<double>(expert + 1), options.zipf_s);
        break;
      case RoutingPattern::kAllToOne:
        if (ToIndex(owner[expert]) != 0) likelihood = kShunned;
        break;
      case RoutingPattern::kOneEmptyRank:
        if (ToIndex(owner[expert]) == world_size - 1) likelihood = kShunned;
        break;
    }
  }
  return likelihoods;
}

size_t Draw(std::span<const double> likelihoods, std::mt19937_64& random) {
  double sum = 0;
  for (const double likelihood : likelihoods) sum += likelihood;
  double left = Uniform(random) * sum;
  size_t last = 0;
  for (size_t i = 0; i < likelihoods.size(); ++i) {
    if (likelihoods[i] == 0) continue;
    last = i;
    left -= likelihoods[i];
    if (left < 0) break;
  }
  return last;
}

}  // namespace

absl::string_view ToString(RoutingPattern pattern) {
  switch (pattern) {
    case RoutingPattern::kUniform:
      return "uniform";
    case RoutingPattern::kZipf:
      return "zipf";
    case RoutingPattern::kAllToOne:
      return "all-to-one";
    case RoutingPattern::kOneEmptyRank:
      return "one-empty-rank";
  }
  return "?";
}

absl::StatusOr<RoutingPattern> ParseRoutingPattern(absl::string_view name) {
  for (const RoutingPattern pattern : kPatterns) {
    if (ToString(pattern) == name) return pattern;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("routing pattern `", name,
                   "` is none of uniform, zipf, all-to-one, one-empty-rank"));
}

MadeRouting MakeRouting(const PatternOptions& options,
                        std::span<const Rank> owner, int world_size,
                        Rank rank) {
  MadeRouting made;
  made.top_k = options.top_k;
  const bool empty = options.pattern == RoutingPattern::kOneEmptyRank &&
                     world_size > 1 && ToIndex(rank) == world_size - 1;
  made.num_tokens = empty ? 0 : options.num_tokens;
  const std::vector<double> all = Likelihoods(options, owner, world_size);
  std::mt19937_64 random(options.seed * 1000003 +
                         static_cast<uint64_t>(ToIndex(rank)));
  std::vector<double> left;
  for (int64_t token = 0; token < made.num_tokens; ++token) {
    left = all;
    float sum = 0;
    const size_t begin = made.weights.size();
    for (int32_t k = 0; k < made.top_k; ++k) {
      const size_t expert = Draw(left, random);
      left[expert] = 0;
      made.experts.push_back(static_cast<int32_t>(expert));
      made.weights.push_back(static_cast<float>(Uniform(random)) + 0.01f);
      sum += made.weights.back();
    }
    for (size_t i = begin; i < made.weights.size(); ++i) made.weights[i] /= sum;
  }
  return made;
}

}  // namespace portolan
