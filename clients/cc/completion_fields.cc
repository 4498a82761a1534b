#include "clients/cc/completion_fields.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

using Json = nlohmann::json;

absl::Status WrongType(const std::string& field, absl::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("\"", field, "\" must be ", wanted));
}

template <typename Integer>
absl::StatusOr<Integer> TakeInteger(const std::string& field,
                                    const Json& value) {
  const bool fits = value.is_number_integer() &&
                    (value.is_number_unsigned()
                         ? std::in_range<Integer>(value.get<uint64_t>())
                         : std::in_range<Integer>(value.get<int64_t>()));
  if (!fits) return WrongType(field, "an integer in range");
  return value.get<Integer>();
}

absl::StatusOr<double> TakeNumber(const std::string& field, const Json& value) {
  if (!value.is_number()) return WrongType(field, "a number");
  return value.get<double>();
}

absl::Status TakeStop(const Json& value, v1::SamplingParams& params) {
  const Json list = value.is_array() ? value : Json::array({value});
  for (const Json& stop : list) {
    if (!stop.is_string()) {
      return WrongType("stop", "a text or a list of texts");
    }
    params.add_stop(stop.get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status TakeStopTokens(const Json& value, v1::SamplingParams& params) {
  if (!value.is_array()) return WrongType("stop_token_ids", "a list of ids");
  for (const Json& item : value) {
    PORTOLAN_ASSIGN_OR_RETURN(const auto id,
                              TakeInteger<int32_t>("stop_token_ids", item));
    params.add_stop_token_ids(id);
  }
  return absl::OkStatus();
}

absl::Status TakeFlag(const Json& value, v1::SamplingParams& params) {
  if (!value.is_boolean()) return WrongType("ignore_eos", "true or false");
  params.set_ignore_eos(value.get<bool>());
  return absl::OkStatus();
}

// Fields whose value must be the one that changes nothing.
bool IsWithoutEffect(const std::string& field, const Json& value) {
  if (field == "user" || field == "stream_options") return true;
  if (field == "stream") return value.is_boolean();
  if (field == "echo") return value == false;
  if (field == "suffix") return value == "";
  if (field == "best_of") return value == 1;
  return field == "logit_bias" && value.empty();
}

}  // namespace

absl::Status TakePrompt(const std::string& field, const nlohmann::json& value,
                        v1::GenerateRequest& request) {
  const Json& prompt =
      value.is_array() && value.size() == 1 && !value.front().is_number()
          ? value.front()
          : value;
  if (prompt.is_string()) {
    request.set_text(prompt.get<std::string>());
    return absl::OkStatus();
  }
  if (!prompt.is_array()) {
    return WrongType(field, "a text or a list of token ids");
  }
  for (const Json& item : prompt) {
    if (!item.is_number()) {
      return absl::UnimplementedError(
          absl::StrCat("\"", field, "\": only one prompt"));
    }
    PORTOLAN_ASSIGN_OR_RETURN(const auto id, TakeInteger<int32_t>(field, item));
    request.mutable_tokens()->add_ids(id);
  }
  return absl::OkStatus();
}

#define PORTOLAN_TAKE_(name, take)                               \
  if (field == #name) {                                          \
    PORTOLAN_ASSIGN_OR_RETURN(const auto v, take(field, value)); \
    params.set_##name(v);                                        \
    return absl::OkStatus();                                     \
  }

absl::Status TakeCompletionField(const std::string& field,
                                 const nlohmann::json& value,
                                 v1::GenerateRequest& request) {
  v1::SamplingParams& params = *request.mutable_params();
  PORTOLAN_TAKE_(max_tokens, TakeInteger<uint32_t>)
  PORTOLAN_TAKE_(temperature, TakeNumber)
  PORTOLAN_TAKE_(top_p, TakeNumber)
  PORTOLAN_TAKE_(top_k, TakeInteger<uint32_t>)
  PORTOLAN_TAKE_(min_p, TakeNumber)
  PORTOLAN_TAKE_(seed, TakeInteger<uint64_t>)
  PORTOLAN_TAKE_(logprobs, TakeInteger<uint32_t>)
  PORTOLAN_TAKE_(repetition_penalty, TakeNumber)
  PORTOLAN_TAKE_(presence_penalty, TakeNumber)
  PORTOLAN_TAKE_(frequency_penalty, TakeNumber)
  PORTOLAN_TAKE_(n, TakeInteger<uint32_t>)
  if (field == "prompt") return TakePrompt(field, value, request);
  if (field == "stop") return TakeStop(value, params);
  if (field == "stop_token_ids") return TakeStopTokens(value, params);
  if (field == "ignore_eos") return TakeFlag(value, params);
  if (field == "model") {
    if (!value.is_string()) return WrongType(field, "a text");
    request.set_model(value.get<std::string>());
    return absl::OkStatus();
  }
  if (IsWithoutEffect(field, value)) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("\"", field, "\": not supported, or not with this value"));
}

#undef PORTOLAN_TAKE_

}  // namespace portolan
