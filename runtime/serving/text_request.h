#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/model/sampler.h"
#include "runtime/model/tokenizer/tokenizer.h"
#include "runtime/serving/request.h"

namespace portolan {

// A request as its user put it, every parameter settled: what a prompt of
// `generate` and an assignment of the coordinator both become first. Its stop
// strings are for the TextStream of its output.
struct TextRequest {
  std::string text;
  std::optional<std::vector<int32_t>> tokens;  // instead of text
  SamplingParams sampling;
  int64_t max_tokens = 1;
  std::vector<std::string> stops;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  std::optional<int32_t> num_logprobs;
  std::vector<int32_t> generated;  // by an earlier attempt
};

// What requests are checked against.
struct ModelTerms {
  const Tokenizer* tokenizer = nullptr;  // null: token ids only
  int64_t vocab_size = 0;
  int64_t max_context = 0;
  std::vector<int32_t> eos_ids;
};

// The tokens of `request`, which the engine takes as number `id`.
// Errors: kInvalidArgument naming the field, also for a prompt that leaves no
// room in the context; as Tokenizer::Encode().
absl::StatusOr<Request> MakeRequest(const TextRequest& request,
                                    const ModelTerms& model, int64_t id);

}  // namespace portolan
