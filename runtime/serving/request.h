#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/logprobs.h"
#include "runtime/model/sampler.h"

namespace portolan {

// What one sequence is asked to generate, in tokens.
struct Request {
  int64_t id = 0;
  std::vector<int32_t> prompt;  // at least one token
  int64_t max_tokens = 0;       // at least 1
  SamplingParams sampling;
  std::vector<int32_t> stop_tokens;  // eos and stop_token_ids; empty: none
  // Tokens that an earlier attempt generated; they count towards max_tokens and
  // are not delivered again.
  std::vector<int32_t> generated;
  // So many likeliest tokens are returned with each token, beside the chosen
  // one; nullopt: no log-probabilities.
  std::optional<int32_t> num_logprobs;

  bool Stops(int32_t token) const {
    return std::ranges::find(stop_tokens, token) != stop_tokens.end();
  }
};

enum class FinishReason {
  kStop,    // a stop token or a stop string
  kLength,  // max_tokens or the model's context
  kCancelled,
};

// "stop", "length", "cancelled".
std::string_view FinishReasonName(FinishReason reason);

struct GeneratedToken {
  int32_t token = 0;
  // The chosen token's first, then the likeliest ones; empty unless asked for.
  // Valid during the call.
  std::span<const TokenLogprob> logprobs;
};

struct SequenceEnd {
  FinishReason reason = FinishReason::kStop;
  // Tokens of the prompt whose keys and values were shared.
  int64_t cached_prompt_tokens = 0;
};

// Receives what sequences generate, on the thread of the step loop.
class TokenSink {
 public:
  virtual ~TokenSink() = default;

  // The next token of a sequence. Returns true if the sequence shall end here
  // (a stop string), which then finishes as kStop.
  virtual bool OnToken(int64_t id, const GeneratedToken& token) = 0;

  // The last call for `id`.
  virtual void OnFinish(int64_t id, const SequenceEnd& end) = 0;
};

}  // namespace portolan
