#include "runtime/agent/wire.h"

#include <algorithm>
#include <cstdint>

namespace portolan {
namespace {

constexpr uint32_t kDefaultMaxTokens = 16;

SamplingParams SamplingOf(const v1::SamplingParams& params) {
  SamplingParams sampling;
  if (params.has_temperature()) sampling.temperature = params.temperature();
  if (params.has_top_k()) {
    sampling.top_k =
        static_cast<int32_t>(std::min<uint32_t>(params.top_k(), INT32_MAX));
  }
  if (params.has_top_p()) sampling.top_p = params.top_p();
  sampling.min_p = params.min_p();
  sampling.seed = params.seed();
  if (params.has_repetition_penalty()) {
    sampling.repetition_penalty = params.repetition_penalty();
  }
  sampling.presence_penalty = params.presence_penalty();
  sampling.frequency_penalty = params.frequency_penalty();
  return sampling;
}

}  // namespace

TextRequest FromAssign(const v1::Assign& assign) {
  const v1::SamplingParams& params = assign.params();
  TextRequest request;
  if (assign.has_tokens()) {
    request.tokens.emplace(assign.tokens().ids().begin(),
                           assign.tokens().ids().end());
  } else {
    request.text = assign.text();
  }
  request.sampling = SamplingOf(params);
  request.max_tokens =
      params.has_max_tokens() ? params.max_tokens() : kDefaultMaxTokens;
  request.stops.assign(params.stop().begin(), params.stop().end());
  request.stop_token_ids.assign(params.stop_token_ids().begin(),
                                params.stop_token_ids().end());
  request.ignore_eos = params.ignore_eos();
  if (params.has_logprobs()) {
    request.num_logprobs =
        static_cast<int32_t>(std::min<uint32_t>(params.logprobs(), INT32_MAX));
  }
  request.generated.assign(assign.prefix().begin(), assign.prefix().end());
  return request;
}

v1::SamplingParams ToProto(const TextRequest& defaults) {
  const SamplingParams& sampling = defaults.sampling;
  v1::SamplingParams params;
  params.set_max_tokens(static_cast<uint32_t>(
      std::clamp<int64_t>(defaults.max_tokens, 1, UINT32_MAX)));
  params.set_temperature(sampling.temperature);
  params.set_top_p(sampling.top_p);
  params.set_top_k(static_cast<uint32_t>(sampling.top_k));
  params.set_min_p(sampling.min_p);
  for (const std::string& stop : defaults.stops) params.add_stop(stop);
  for (const int32_t token : defaults.stop_token_ids) {
    params.add_stop_token_ids(token);
  }
  if (defaults.num_logprobs.has_value()) {
    params.set_logprobs(static_cast<uint32_t>(*defaults.num_logprobs));
  }
  params.set_ignore_eos(defaults.ignore_eos);
  params.set_repetition_penalty(sampling.repetition_penalty);
  params.set_presence_penalty(sampling.presence_penalty);
  params.set_frequency_penalty(sampling.frequency_penalty);
  return params;
}

v1::TokenLogprobs ToProto(std::span<const TokenLogprob> logprobs) {
  v1::TokenLogprobs result;
  for (size_t i = 0; i < logprobs.size(); ++i) {
    v1::TokenLogprob& entry =
        i == 0 ? *result.mutable_chosen() : *result.add_top();
    entry.set_token_id(logprobs[i].token);
    entry.set_logprob(logprobs[i].logprob);
  }
  return result;
}

v1::Finish ToProto(const SequenceEnd& end, int64_t prompt_tokens) {
  v1::Finish finish;
  switch (end.reason) {
    case FinishReason::kStop:
      finish.set_reason(v1::FINISH_REASON_STOP);
      break;
    case FinishReason::kLength:
      finish.set_reason(v1::FINISH_REASON_LENGTH);
      break;
    case FinishReason::kCancelled:
      finish.set_reason(v1::FINISH_REASON_CANCELLED);
      break;
  }
  v1::Usage& usage = *finish.mutable_usage();
  usage.set_prompt_tokens(static_cast<uint32_t>(prompt_tokens));
  usage.set_cached_prompt_tokens(
      static_cast<uint32_t>(end.cached_prompt_tokens));
  return finish;
}

v1::Histogram ToProto(const Histogram& histogram) {
  v1::Histogram result;
  result.mutable_bounds()->Add(histogram.bounds().begin(),
                               histogram.bounds().end());
  result.mutable_counts()->Add(histogram.counts().begin(),
                               histogram.counts().end());
  result.set_sum(histogram.sum());
  return result;
}

v1::Finish ErrorFinish(const absl::Status& status) {
  v1::Finish finish;
  finish.set_reason(v1::FINISH_REASON_ERROR);
  finish.mutable_error()->set_code(static_cast<uint32_t>(status.code()));
  finish.mutable_error()->set_message(std::string(status.message()));
  return finish;
}

}  // namespace portolan
