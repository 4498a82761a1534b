#include "cluster/coordinator/params.h"

namespace portolan {

v1::SamplingParams MergeParams(const v1::SamplingParams& request,
                               const v1::SamplingParams& job, uint64_t seed) {
  v1::SamplingParams params;
  params.set_max_tokens(kDefaultMaxTokens);
  params.set_temperature(1);
  params.set_top_p(1);
  params.set_top_k(0);
  params.set_min_p(0);
  params.set_ignore_eos(false);
  params.set_repetition_penalty(1);
  params.set_presence_penalty(0);
  params.set_frequency_penalty(0);
  params.set_n(1);
  params.MergeFrom(job);
  // Lists are replaced, not joined.
  if (request.stop_size() > 0) params.clear_stop();
  if (request.stop_token_ids_size() > 0) params.clear_stop_token_ids();
  params.MergeFrom(request);
  params.set_seed(seed);
  return params;
}

}  // namespace portolan
