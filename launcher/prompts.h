#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/model/sampler.h"

namespace portolan {

// What a prompt asks for; a value that is absent comes from the command line,
// the model's generation_config.json or the built-in default, in this order.
struct SamplingWishes {
  std::optional<int64_t> max_tokens;
  std::optional<double> temperature;
  std::optional<int32_t> top_k;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<uint64_t> seed;
  std::optional<std::vector<std::string>> stop;
  std::optional<std::vector<int32_t>> stop_token_ids;  // beside the model's
  std::optional<bool> ignore_eos;
  std::optional<int32_t> logprobs;
  std::optional<double> repetition_penalty;
  std::optional<double> presence_penalty;
  std::optional<double> frequency_penalty;
};

// One line of a --prompts file.
struct Prompt {
  std::string id;
  std::string where;  // for errors: "prompts.jsonl, line 3"
  std::string text;
  std::optional<std::vector<int32_t>> tokens;  // instead of text
  SamplingWishes wishes;
};

// Reads a JSONL file: one object a line with "prompt" or "prompt_tokens", and
// optionally "id" (its own; default: how many prompts come before it), the
// fields of SamplingWishes, and labels that change nothing ("domain",
// "metadata"). Any other field is refused, for it may be a wish misspelt.
// Errors: kNotFound, kInvalidArgument naming file, line and field.
absl::StatusOr<std::vector<Prompt>> ReadPrompts(const std::string& path);

// As ReadPrompts(), from memory; `name` stands for the file in errors.
absl::StatusOr<std::vector<Prompt>> ParsePrompts(std::string_view jsonl,
                                                 std::string_view name);

// `wishes` first, then `defaults`.
SamplingWishes Merge(const SamplingWishes& wishes,
                     const SamplingWishes& defaults);

}  // namespace portolan
