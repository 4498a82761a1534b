#include "launcher/requests.h"

namespace portolan {
namespace {

SamplingParams SettleSampling(const SamplingWishes& wishes,
                              const GenerationDefaults& model) {
  SamplingParams params;
  const bool greedy = model.do_sample == false && !wishes.temperature;
  params.temperature =
      greedy ? 0 : wishes.temperature.value_or(model.temperature.value_or(1));
  params.top_k = wishes.top_k.value_or(model.top_k.value_or(0));
  params.top_p = wishes.top_p.value_or(model.top_p.value_or(1));
  params.min_p = wishes.min_p.value_or(model.min_p.value_or(0));
  params.repetition_penalty =
      wishes.repetition_penalty.value_or(model.repetition_penalty.value_or(1));
  params.presence_penalty = wishes.presence_penalty.value_or(0);
  params.frequency_penalty = wishes.frequency_penalty.value_or(0);
  params.seed = wishes.seed.value_or(0);
  return params;
}

}  // namespace

TextRequest SettleRequest(const Prompt& prompt,
                          const SamplingWishes& command_line,
                          const ModelConfig& config, int64_t max_tokens) {
  const SamplingWishes wishes = Merge(prompt.wishes, command_line);
  TextRequest request;
  request.text = prompt.text;
  request.tokens = prompt.tokens;
  request.sampling = SettleSampling(wishes, config.generation);
  request.max_tokens = wishes.max_tokens.value_or(max_tokens);
  request.stops = wishes.stop.value_or(std::vector<std::string>());
  request.stop_token_ids =
      wishes.stop_token_ids.value_or(std::vector<int32_t>());
  request.ignore_eos = wishes.ignore_eos.value_or(false);
  request.num_logprobs = wishes.logprobs;
  return request;
}

ModelTerms TermsOf(const Model& model) {
  return {.tokenizer = model.tokenizer.get(),
          .vocab_size = model.config.vocab_size,
          .max_context = model.config.max_position,
          .eos_ids = model.config.eos_ids};
}

}  // namespace portolan
