#include "runtime/serving/text_request.h"

#include <span>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr int32_t kMaxLogprobs = 5;

absl::StatusOr<std::vector<int32_t>> PromptTokens(const TextRequest& request,
                                                  const ModelTerms& model) {
  if (request.tokens.has_value()) return *request.tokens;
  if (model.tokenizer == nullptr) {
    return absl::InvalidArgumentError(
        "prompt: the model has no tokenizer; send token ids");
  }
  return model.tokenizer->Encode(request.text, /*add_special_tokens=*/true);
}

absl::Status CheckTokens(std::span<const int32_t> tokens, const char* field,
                         const ModelTerms& model) {
  for (const int32_t token : tokens) {
    if (token < 0 || token >= model.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": token ", token,
                       " is not in the vocabulary of ", model.vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckParameters(const TextRequest& request) {
  PORTOLAN_RETURN_IF_ERROR(ValidateSampling(request.sampling));
  if (request.max_tokens < 1) {
    return absl::InvalidArgumentError("max_tokens must be at least 1");
  }
  for (const std::string& stop : request.stops) {
    if (stop.empty()) {
      return absl::InvalidArgumentError("stop: a text must not be empty");
    }
  }
  if (request.num_logprobs.has_value() &&
      (*request.num_logprobs < 0 || *request.num_logprobs > kMaxLogprobs)) {
    return absl::InvalidArgumentError(
        absl::StrCat("logprobs must be from 0 to ", kMaxLogprobs, ", not ",
                     *request.num_logprobs));
  }
  return absl::OkStatus();
}

absl::Status CheckPrompt(const std::vector<int32_t>& prompt,
                         const ModelTerms& model) {
  PORTOLAN_RETURN_IF_ERROR(CheckTokens(prompt, "prompt_tokens", model));
  if (prompt.empty()) return absl::InvalidArgumentError("the prompt is empty");
  if (static_cast<int64_t>(prompt.size()) >= model.max_context) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", prompt.size(), " tokens; the model's context holds ",
        model.max_context, ", generated ones too"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Request> MakeRequest(const TextRequest& request,
                                    const ModelTerms& model, int64_t id) {
  PORTOLAN_RETURN_IF_ERROR(CheckParameters(request));
  PORTOLAN_RETURN_IF_ERROR(
      CheckTokens(request.stop_token_ids, "stop_token_ids", model));
  PORTOLAN_RETURN_IF_ERROR(
      CheckTokens(request.generated, "generated tokens", model));
  Request made;
  made.id = id;
  PORTOLAN_ASSIGN_OR_RETURN(made.prompt, PromptTokens(request, model));
  PORTOLAN_RETURN_IF_ERROR(CheckPrompt(made.prompt, model));
  made.generated = request.generated;
  made.max_tokens = request.max_tokens;
  made.sampling = request.sampling;
  if (!request.ignore_eos) made.stop_tokens = model.eos_ids;
  made.stop_tokens.insert(made.stop_tokens.end(),
                          request.stop_token_ids.begin(),
                          request.stop_token_ids.end());
  made.num_logprobs = request.num_logprobs;
  return made;
}

}  // namespace portolan
