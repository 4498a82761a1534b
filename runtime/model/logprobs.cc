#include "runtime/model/logprobs.h"

#include <algorithm>

#include "runtime/base/check.h"
#include "runtime/kernels/math.h"

namespace portolan {
namespace {

bool Likelier(const TokenLogprob& a, const TokenLogprob& b) {
  return a.logprob != b.logprob ? a.logprob > b.logprob : a.token < b.token;
}

// Keeps the likeliest of [begin, end) sorted while going through the logits.
void CollectTop(std::span<const float> logits, size_t count,
                std::vector<TokenLogprob>& out) {
  for (size_t i = 0; i < logits.size(); ++i) {
    const TokenLogprob candidate{static_cast<int32_t>(i), logits[i]};
    if (out.size() == count + 1 && !Likelier(candidate, out.back())) continue;
    const auto place =
        std::upper_bound(out.begin() + 1, out.end(), candidate, Likelier);
    out.insert(place, candidate);
    if (out.size() > count + 1) out.pop_back();
  }
}

}  // namespace

void ComputeLogprobs(std::span<const float> logits, int32_t chosen,
                     int32_t num_top, std::vector<TokenLogprob>& out) {
  PORTOLAN_CHECK(chosen >= 0 && static_cast<size_t>(chosen) < logits.size());
  const float best = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) {
    sum += static_cast<double>(Exp(logit - best));
  }
  out.clear();
  out.push_back({chosen, logits[static_cast<size_t>(chosen)]});
  if (num_top > 0) CollectTop(logits, static_cast<size_t>(num_top), out);
  const double log_sum = LogD(sum);
  for (TokenLogprob& entry : out) {
    entry.logprob = static_cast<float>(static_cast<double>(entry.logprob) -
                                       static_cast<double>(best) - log_sum);
  }
}

}  // namespace portolan
