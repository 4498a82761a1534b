#include "runtime/model/sampler.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/kernels/math.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/philox.h"

namespace portolan {
namespace {

absl::Status OutOfRange(const char* field, const char* wanted, double found) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, " must be ", wanted, ", not ", found));
}

}  // namespace

absl::Status ValidateSampling(const SamplingParams& params) {
  if (!(params.temperature >= 0 && params.temperature <= kMaxTemperature)) {
    return OutOfRange("temperature", "from 0 to 100", params.temperature);
  }
  if (params.top_k < 0)
    return OutOfRange("top_k", "0 (off) or more", params.top_k);
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return OutOfRange("top_p", "above 0 and at most 1", params.top_p);
  }
  if (!(params.min_p >= 0 && params.min_p <= 1)) {
    return OutOfRange("min_p", "from 0 to 1", params.min_p);
  }
  if (!(params.repetition_penalty > 0 &&
        params.repetition_penalty <= kMaxPenalty)) {
    return OutOfRange("repetition_penalty", "above 0 and at most 100",
                      params.repetition_penalty);
  }
  if (!(std::abs(params.presence_penalty) <= kMaxPenalty)) {
    return OutOfRange("presence_penalty", "from -100 to 100",
                      params.presence_penalty);
  }
  if (!(std::abs(params.frequency_penalty) <= kMaxPenalty)) {
    return OutOfRange("frequency_penalty", "from -100 to 100",
                      params.frequency_penalty);
  }
  return absl::OkStatus();
}

Sampler::Sampler(int32_t vocab_size)
    : logits_(static_cast<size_t>(vocab_size)),
      candidates_(static_cast<size_t>(vocab_size)),
      counts_(static_cast<size_t>(vocab_size)) {
  PORTOLAN_CHECK(vocab_size > 0);
}

int32_t Sampler::Sample(std::span<const float> logits,
                        const SamplingParams& params,
                        std::span<const int32_t> context, int64_t num_prompt) {
  PORTOLAN_CHECK(logits.size() == logits_.size());
  std::copy(logits.begin(), logits.end(), logits_.begin());
  Penalize(params, context, num_prompt);
  const auto best = std::max_element(logits_.begin(), logits_.end());
  if (params.temperature == 0) {
    return static_cast<int32_t>(best - logits_.begin());
  }
  max_logit_ = *best;
  return Draw(params, context.size());
}

void Sampler::Penalize(const SamplingParams& params,
                       std::span<const int32_t> context, int64_t num_prompt) {
  const bool none = params.repetition_penalty == 1 &&
                    params.presence_penalty == 0 &&
                    params.frequency_penalty == 0;
  if (none) return;
  const auto repetition = static_cast<float>(params.repetition_penalty);
  for (const int32_t token : context) {
    const auto t = static_cast<size_t>(token);
    if (counts_[t]++ > 0) continue;
    logits_[t] =
        logits_[t] > 0 ? logits_[t] / repetition : logits_[t] * repetition;
  }
  for (const int32_t token : context) counts_[static_cast<size_t>(token)] = 0;
  const std::span<const int32_t> output =
      context.subspan(static_cast<size_t>(num_prompt));
  const auto presence = static_cast<float>(params.presence_penalty);
  const auto frequency = static_cast<float>(params.frequency_penalty);
  for (const int32_t token : output) {
    const auto t = static_cast<size_t>(token);
    if (counts_[t]++ == 0) logits_[t] -= presence;
    logits_[t] -= frequency;
  }
  for (const int32_t token : output) counts_[static_cast<size_t>(token)] = 0;
}

double Sampler::Weight(const Candidate& candidate, double temperature) const {
  const double exponent =
      (static_cast<double>(candidate.logit) - max_logit_) / temperature;
  return static_cast<double>(Exp(static_cast<float>(exponent)));
}

int32_t Sampler::Draw(const SamplingParams& params, uint64_t position) {
  for (size_t i = 0; i < logits_.size(); ++i) {
    candidates_[i] = {logits_[i], static_cast<int32_t>(i)};
  }
  num_sorted_ = 0;
  const size_t kept = Filter(params);
  double sum = 0;
  for (size_t i = 0; i < kept; ++i) {
    sum += Weight(candidates_[i], params.temperature);
  }
  const double target = UniformAt(params.seed, position) * sum;
  double below = 0;
  for (size_t i = 0; i < kept; ++i) {
    below += Weight(candidates_[i], params.temperature);
    if (below > target) return candidates_[i].token;
  }
  return candidates_[kept - 1].token;
}

size_t Sampler::Filter(const SamplingParams& params) {
  size_t kept = candidates_.size();
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < kept) {
    kept = static_cast<size_t>(params.top_k);
    SortFirst(kept);
  }
  if (params.top_p < 1) {
    double sum = 0;
    for (size_t i = 0; i < kept; ++i) {
      sum += Weight(candidates_[i], params.temperature);
    }
    double below = 0;
    size_t nucleus = 0;
    while (nucleus < kept && below < params.top_p * sum) {
      if (nucleus == num_sorted_) {
        SortFirst(std::min(kept, std::max<size_t>(64, 4 * num_sorted_)));
      }
      below += Weight(candidates_[nucleus++], params.temperature);
    }
    kept = nucleus;
  }
  if (params.min_p > 0) {
    // The best token's weight is 1, so min_p is the threshold itself.
    const auto unlikely = [&](const Candidate& candidate) {
      return Weight(candidate, params.temperature) < params.min_p;
    };
    const auto begin = candidates_.begin();
    const auto end = begin + static_cast<ptrdiff_t>(kept);
    kept = static_cast<size_t>(std::remove_if(begin, end, unlikely) - begin);
  }
  return std::max<size_t>(kept, 1);
}

void Sampler::SortFirst(size_t count) {
  if (count <= num_sorted_) return;
  const auto by_logit = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  const auto begin = candidates_.begin();
  std::partial_sort(begin + static_cast<ptrdiff_t>(num_sorted_),
                    begin + static_cast<ptrdiff_t>(count), candidates_.end(),
                    by_logit);
  num_sorted_ = count;
}

}  // namespace portolan
