#include "cluster/coordinator/validation.h"

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/unknown_field_set.h"
#include "proto/rpc_status.pb.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr char kBadRequest[] = "type.googleapis.com/google.rpc.BadRequest";
constexpr char kRetryInfo[] = "type.googleapis.com/google.rpc.RetryInfo";

constexpr int kMaxStops = 16;
constexpr int kMaxStopTokens = 64;
constexpr size_t kMaxStopBytes = 256;
constexpr size_t kMaxNameBytes = 128;
constexpr size_t kMaxCustomIdBytes = 256;
constexpr uint32_t kMaxLogprobs = 5;
constexpr uint32_t kMaxTokens = 1u << 30;
// Beyond it a Duration is malformed: 10,000 years.
constexpr int64_t kMaxSeconds = 315'576'000'000;

absl::Status Invalid(std::string_view field, std::string_view what) {
  return FieldError(absl::StatusCode::kInvalidArgument, field, what);
}

// NaN is in no range.
absl::Status CheckRange(std::string_view field, double value, bool ok,
                        std::string_view range) {
  if (ok) return absl::OkStatus();
  return Invalid(
      field, absl::StrCat("is ", value, "; it must be ", std::string(range)));
}

absl::Status CheckBytes(std::string_view field, std::string_view text,
                        size_t min, size_t max) {
  if (text.size() >= min && text.size() <= max) return absl::OkStatus();
  return Invalid(field, absl::StrCat("has ", text.size(), " bytes; it must be ",
                                     min, " to ", max));
}

absl::Status CheckNumbers(const v1::SamplingParams& params) {
  if (params.has_temperature()) {
    const double t = params.temperature();
    PORTOLAN_RETURN_IF_ERROR(
        CheckRange("params.temperature", t, t >= 0 && t <= 100, "0 .. 100"));
  }
  if (params.has_top_p()) {
    const double p = params.top_p();
    PORTOLAN_RETURN_IF_ERROR(
        CheckRange("params.top_p", p, p > 0 && p <= 1, "> 0 and <= 1"));
  }
  if (params.has_min_p()) {
    const double p = params.min_p();
    PORTOLAN_RETURN_IF_ERROR(
        CheckRange("params.min_p", p, p >= 0 && p <= 1, "0 .. 1"));
  }
  if (params.has_repetition_penalty()) {
    const double p = params.repetition_penalty();
    PORTOLAN_RETURN_IF_ERROR(CheckRange("params.repetition_penalty", p,
                                        p > 0 && p <= 10, "> 0 and <= 10"));
  }
  if (params.has_presence_penalty()) {
    const double p = params.presence_penalty();
    PORTOLAN_RETURN_IF_ERROR(
        CheckRange("params.presence_penalty", p, p >= -2 && p <= 2, "-2 .. 2"));
  }
  if (params.has_frequency_penalty()) {
    const double p = params.frequency_penalty();
    PORTOLAN_RETURN_IF_ERROR(CheckRange("params.frequency_penalty", p,
                                        p >= -2 && p <= 2, "-2 .. 2"));
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const v1::SamplingParams& params) {
  if (params.stop_size() > kMaxStops) {
    return Invalid("params.stop",
                   absl::StrCat("has ", params.stop_size(), " texts; at most ",
                                kMaxStops, " are served"));
  }
  for (int i = 0; i < params.stop_size(); ++i) {
    PORTOLAN_RETURN_IF_ERROR(CheckBytes(absl::StrCat("params.stop[", i, "]"),
                                        params.stop(i), 1, kMaxStopBytes));
  }
  if (params.stop_token_ids_size() > kMaxStopTokens) {
    return Invalid(
        "params.stop_token_ids",
        absl::StrCat("has ", params.stop_token_ids_size(), " ids; at most ",
                     kMaxStopTokens, " are served"));
  }
  for (int i = 0; i < params.stop_token_ids_size(); ++i) {
    if (params.stop_token_ids(i) < 0) {
      return Invalid(absl::StrCat("params.stop_token_ids[", i, "]"),
                     absl::StrCat("is ", params.stop_token_ids(i),
                                  "; token ids are not negative"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckParams(const v1::SamplingParams& params) {
  if (params.has_n() && params.n() != 1) {
    if (params.n() == 0) return Invalid("params.n", "is 0; it must be 1");
    return FieldError(absl::StatusCode::kUnimplemented, "params.n",
                      absl::StrCat("is ", params.n(), "; only 1 is served"));
  }
  if (params.has_max_tokens() &&
      (params.max_tokens() == 0 || params.max_tokens() > kMaxTokens)) {
    return Invalid("params.max_tokens",
                   absl::StrCat("is ", params.max_tokens(),
                                "; it must be 1 .. ", kMaxTokens));
  }
  if (params.has_logprobs() && params.logprobs() > kMaxLogprobs) {
    return Invalid("params.logprobs",
                   absl::StrCat("is ", params.logprobs(), "; it must be 0 .. ",
                                kMaxLogprobs));
  }
  PORTOLAN_RETURN_IF_ERROR(CheckNumbers(params));
  return CheckStops(params);
}

absl::Status CheckTokens(const v1::TokenIds& tokens,
                         const RequestLimits& limits) {
  if (tokens.ids_size() == 0) return Invalid("tokens", "is empty");
  if (tokens.ids_size() > limits.max_prompt_tokens) {
    return Invalid("tokens",
                   absl::StrCat("has ", tokens.ids_size(), " ids; at most ",
                                limits.max_prompt_tokens,
                                " are taken (--max-prompt-tokens)"));
  }
  for (int i = 0; i < tokens.ids_size(); ++i) {
    if (tokens.ids(i) < 0) {
      return Invalid(
          absl::StrCat("tokens.ids[", i, "]"),
          absl::StrCat("is ", tokens.ids(i), "; token ids are not negative"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPrompt(const v1::GenerateRequest& request,
                         const RequestLimits& limits) {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText:
      if (request.text().empty()) return Invalid("text", "is empty");
      if (static_cast<int64_t>(request.text().size()) >
          limits.max_prompt_bytes) {
        return Invalid(
            "text",
            absl::StrCat("has ", request.text().size(), " bytes; at most ",
                         limits.max_prompt_bytes, " are taken"));
      }
      return absl::OkStatus();
    case v1::GenerateRequest::kTokens:
      return CheckTokens(request.tokens(), limits);
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return Invalid("prompt", "is missing; give text or tokens");
}

absl::Status CheckTimeout(const google::protobuf::Duration& timeout) {
  const bool positive =
      timeout.seconds() > 0 || (timeout.seconds() == 0 && timeout.nanos() > 0);
  if (!positive || timeout.seconds() > kMaxSeconds || timeout.nanos() < 0 ||
      timeout.nanos() > 999'999'999) {
    return Invalid("timeout",
                   absl::StrCat("is ", timeout.seconds(), " s and ",
                                timeout.nanos(), " ns; it must be positive"));
  }
  return absl::OkStatus();
}

absl::Status CheckRequestId(std::string_view id) {
  return CheckBytes("request_id", id, 1, kMaxNameBytes);
}

std::string UnknownField(const google::protobuf::Message& message) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  const google::protobuf::UnknownFieldSet& unknown =
      reflection.GetUnknownFields(message);
  if (!unknown.empty()) return absl::StrCat("#", unknown.field(0).number());
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const auto* field : fields) {
    if (field->cpp_type() !=
        google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE) {
      continue;
    }
    const int count =
        field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      const std::string inner =
          UnknownField(field->is_repeated()
                           ? reflection.GetRepeatedMessage(message, field, i)
                           : reflection.GetMessage(message, field));
      if (!inner.empty()) return absl::StrCat(field->name(), ".", inner);
    }
  }
  return "";
}

}  // namespace

absl::Status FieldError(absl::StatusCode code, std::string_view field,
                        std::string_view what) {
  google::rpc::BadRequest details;
  auto* violation = details.add_field_violations();
  violation->set_field(std::string(field));
  violation->set_description(std::string(what));
  absl::Status status(code,
                      absl::StrCat(std::string(field), " ", std::string(what)));
  status.SetPayload(kBadRequest, absl::Cord(details.SerializeAsString()));
  return status;
}

absl::Status WithBadField(absl::Status status, std::string_view field) {
  google::rpc::BadRequest details;
  auto* violation = details.add_field_violations();
  violation->set_field(std::string(field));
  violation->set_description(std::string(status.message()));
  status.SetPayload(kBadRequest, absl::Cord(details.SerializeAsString()));
  return status;
}

absl::Status WithRetryInfo(absl::Status status, absl::Duration delay) {
  google::rpc::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(delay));
  info.mutable_retry_delay()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(delay) % 1'000'000'000));
  status.SetPayload(kRetryInfo, absl::Cord(info.SerializeAsString()));
  return status;
}

absl::Duration RetryDelay(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryInfo);
  google::rpc::RetryInfo info;
  if (!payload || !info.ParseFromString(std::string(*payload))) return {};
  return absl::Seconds(info.retry_delay().seconds()) +
         absl::Nanoseconds(info.retry_delay().nanos());
}

absl::Status CheckUnknownFields(const google::protobuf::Message& message) {
  const std::string field = UnknownField(message);
  if (field.empty()) return absl::OkStatus();
  return FieldError(absl::StatusCode::kUnimplemented, field,
                    absl::StrCat("of ", message.GetDescriptor()->name(),
                                 " is not known to this version"));
}

absl::Status ValidateGenerate(const v1::GenerateRequest& request,
                              const RequestLimits& limits) {
  PORTOLAN_RETURN_IF_ERROR(CheckUnknownFields(request));
  PORTOLAN_RETURN_IF_ERROR(
      CheckBytes("model", request.model(), 0, kMaxNameBytes));
  PORTOLAN_RETURN_IF_ERROR(CheckPrompt(request, limits));
  PORTOLAN_RETURN_IF_ERROR(CheckParams(request.params()));
  PORTOLAN_RETURN_IF_ERROR(CheckBytes(
      "idempotency_key", request.idempotency_key(), 0, kMaxNameBytes));
  PORTOLAN_RETURN_IF_ERROR(
      CheckBytes("custom_id", request.custom_id(), 0, kMaxCustomIdBytes));
  if (request.has_timeout()) {
    PORTOLAN_RETURN_IF_ERROR(CheckTimeout(request.timeout()));
  }
  return absl::OkStatus();
}

absl::Status ValidateForModel(const v1::GenerateRequest& request,
                              const v1::ModelIdentity& model) {
  const v1::TokenIds& tokens = request.tokens();
  for (int i = 0; model.vocab_size() > 0 && i < tokens.ids_size(); ++i) {
    if (static_cast<uint32_t>(tokens.ids(i)) < model.vocab_size()) continue;
    return Invalid(absl::StrCat("tokens.ids[", i, "]"),
                   absl::StrCat("is ", tokens.ids(i), "; model '", model.name(),
                                "' has ", model.vocab_size(), " tokens"));
  }
  const int64_t asked =
      request.params().has_max_tokens() ? request.params().max_tokens() : 1;
  // A text has at least one; the rank, which counts them, says the rest.
  const int64_t prompt = request.has_tokens() ? tokens.ids_size() : 1;
  if (model.max_context() > 0 && prompt + asked > model.max_context()) {
    return FieldError(
        absl::StatusCode::kOutOfRange, "params.max_tokens",
        absl::StrCat("is ", asked, "; with the prompt of ",
                     request.has_tokens() ? "" : "at least ", prompt,
                     " tokens that is beyond the context of model '",
                     model.name(), "', ", model.max_context()));
  }
  return absl::OkStatus();
}

absl::Status ValidateWatch(const v1::WatchRequest& request) {
  PORTOLAN_RETURN_IF_ERROR(CheckUnknownFields(request));
  if (request.from_offset() > kMaxTokens) {
    return Invalid("from_offset", "is beyond any output");
  }
  return CheckRequestId(request.request_id());
}

absl::Status ValidateGet(const v1::GetRequest& request) {
  PORTOLAN_RETURN_IF_ERROR(CheckUnknownFields(request));
  return CheckRequestId(request.request_id());
}

absl::Status ValidateCancel(const v1::CancelRequest& request) {
  PORTOLAN_RETURN_IF_ERROR(CheckUnknownFields(request));
  return CheckRequestId(request.request_id());
}

absl::Status ValidateList(const v1::ListRequest& request) {
  PORTOLAN_RETURN_IF_ERROR(CheckUnknownFields(request));
  if (request.page_size() > 1000) {
    return Invalid("page_size", absl::StrCat("is ", request.page_size(),
                                             "; it must be 0 .. 1000"));
  }
  for (int i = 0; i < request.states_size(); ++i) {
    if (request.states(i) == v1::REQUEST_STATE_UNSPECIFIED ||
        !v1::RequestState_IsValid(request.states(i))) {
      return Invalid(absl::StrCat("states[", i, "]"),
                     absl::StrCat("is ", static_cast<int>(request.states(i)),
                                  ", which is no state"));
    }
  }
  return CheckBytes("page_token", request.page_token(), 0, 20);
}

absl::Status ValidateRegister(const v1::Register& message) {
  if (message.protocol_version() != 1) {
    return absl::FailedPreconditionError(absl::StrCat(
        "protocol_version is ", message.protocol_version(),
        "; this coordinator speaks version 1: use the same release of "
        "portolan for both"));
  }
  PORTOLAN_RETURN_IF_ERROR(CheckBytes("job", message.job(), 1, kMaxNameBytes));
  if (message.world_size() == 0 || message.world_size() > (1u << 20)) {
    return Invalid("world_size",
                   absl::StrCat("is ", message.world_size(), "; it must be ",
                                "1 .. ", 1u << 20));
  }
  if (message.rank() >= message.world_size()) {
    return Invalid("rank",
                   absl::StrCat("is ", message.rank(), "; the world has ",
                                message.world_size(), " ranks"));
  }
  PORTOLAN_RETURN_IF_ERROR(CheckBytes("host", message.host(), 0, 256));
  PORTOLAN_RETURN_IF_ERROR(
      CheckBytes("model.name", message.model().name(), 0, kMaxNameBytes));
  PORTOLAN_RETURN_IF_ERROR(CheckBytes(
      "model.fingerprint", message.model().fingerprint(), 1, kMaxNameBytes));
  PORTOLAN_RETURN_IF_ERROR(CheckBytes(
      "model.numerics_id", message.model().numerics_id(), 1, kMaxNameBytes));
  if (message.capacity().max_sequences() == 0 ||
      message.capacity().max_sequences() > (1u << 20)) {
    return Invalid("capacity.max_sequences",
                   absl::StrCat("is ", message.capacity().max_sequences(),
                                "; it must be 1 .. ", 1u << 20));
  }
  return CheckParams(message.defaults());
}

absl::Status ValidateDelta(const v1::TokenDelta& delta) {
  const int num = delta.token_ids_size();
  if (delta.texts_size() != num) {
    return Invalid("deltas.texts", absl::StrCat("has ", delta.texts_size(),
                                                " texts for ", num, " tokens"));
  }
  if (delta.logprobs_size() != 0 && delta.logprobs_size() != num) {
    return Invalid("deltas.logprobs",
                   absl::StrCat("has ", delta.logprobs_size(), " entries for ",
                                num, " tokens"));
  }
  if (int64_t{delta.offset()} + num > kMaxTokens) {
    return Invalid("deltas.offset", "is beyond any output");
  }
  if (delta.has_finish() &&
      (delta.finish().reason() == v1::FINISH_REASON_UNSPECIFIED ||
       !v1::FinishReason_IsValid(delta.finish().reason()))) {
    return Invalid("deltas.finish.reason", "is no reason");
  }
  return absl::OkStatus();
}

int64_t PromptTokens(const v1::GenerateRequest& request) {
  if (request.has_tokens()) return request.tokens().ids_size();
  return static_cast<int64_t>(request.text().size() + 3) / 4;
}

}  // namespace portolan
