#include "clients/cc/batch.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "clients/cc/completion_fields.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

absl::Status TakeBody(const Json& object, v1::GenerateRequest& request) {
  if (object.value("url", "/v1/completions") != "/v1/completions") {
    return absl::UnimplementedError("url: only /v1/completions is served");
  }
  const auto body = object.find("body");
  if (body == object.end() || !body->is_object()) {
    return absl::InvalidArgumentError("body must be an object");
  }
  for (const auto& [field, value] : body->items()) {
    if (value.is_null()) continue;
    PORTOLAN_RETURN_IF_ERROR(TakeCompletionField(field, value, request));
  }
  if (request.prompt_case() == v1::GenerateRequest::PROMPT_NOT_SET) {
    return absl::InvalidArgumentError("body.prompt is missing");
  }
  return absl::OkStatus();
}

// Fowler, Noll and Vo's hash, 64 bits.
uint64_t Fnv1a(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  }
  return hash;
}

std::string Dump(const OrderedJson& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

OrderedJson LogprobsJson(const Transcript& transcript) {
  if (transcript.logprobs().empty()) return nullptr;
  OrderedJson json = {{"tokens", OrderedJson::array()},
                      {"token_logprobs", OrderedJson::array()},
                      {"top_logprobs", OrderedJson::array()}};
  for (const v1::TokenLogprobs& token : transcript.logprobs()) {
    OrderedJson top = OrderedJson::object();
    for (const v1::TokenLogprob& other : token.top()) {
      top[absl::StrCat("token_id:", other.token_id())] = other.logprob();
    }
    json["tokens"].push_back(
        absl::StrCat("token_id:", token.chosen().token_id()));
    json["token_logprobs"].push_back(token.chosen().logprob());
    json["top_logprobs"].push_back(std::move(top));
  }
  return json;
}

}  // namespace

absl::StatusOr<BatchLine> ParseBatchLine(std::string_view line) {
  const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return absl::InvalidArgumentError("not a JSON object");
  }
  const auto id = object.find("custom_id");
  if (id == object.end() || !id->is_string() ||
      id->get_ref<const std::string&>().empty()) {
    return absl::InvalidArgumentError("\"custom_id\" must be a text");
  }
  for (const char* field : {"url", "method"}) {
    if (object.contains(field) && !object[field].is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", field, "\" must be a text"));
    }
  }
  BatchLine parsed;
  parsed.custom_id = id->get<std::string>();
  parsed.status = TakeBody(object, parsed.request);
  parsed.request.set_custom_id(parsed.custom_id);
  return parsed;
}

std::string BatchKey(std::string_view prefix, std::string_view custom_id,
                     int attempt) {
  constexpr size_t kMaxKeyBytes = 128;
  const std::string suffix = attempt > 1 ? absl::StrCat("#", attempt) : "";
  std::string key = std::string(prefix) + std::string(custom_id);
  if (key.size() + suffix.size() > kMaxKeyBytes) {
    const std::string digest =
        absl::StrCat("~", absl::Hex(Fnv1a(key), absl::kZeroPad16));
    size_t head = kMaxKeyBytes - digest.size() - suffix.size();
    // No character is cut in two.
    while (head > 0 && (key[head] & 0xC0) == 0x80) --head;
    key = key.substr(0, head) + digest;
  }
  return key + suffix;
}

std::string BatchResult(std::string_view custom_id, std::string_view model,
                        absl::Time created, const Transcript& transcript) {
  const v1::Usage& usage = transcript.finish().usage();
  OrderedJson choice = {
      {"index", 0},
      {"text", transcript.text()},
      {"logprobs", LogprobsJson(transcript)},
      {"finish_reason", FinishReasonText(transcript.finish().reason())},
      {"token_ids", transcript.tokens()}};
  OrderedJson body = {
      {"id", absl::StrCat("cmpl-", transcript.request_id())},
      {"object", "text_completion"},
      {"created", absl::ToUnixSeconds(created)},
      {"model", model},
      {"choices", OrderedJson::array({std::move(choice)})},
      {"usage",
       {{"prompt_tokens", usage.prompt_tokens()},
        {"completion_tokens", usage.completion_tokens()},
        {"total_tokens", usage.prompt_tokens() + usage.completion_tokens()}}}};
  return Dump({{"id", absl::StrCat("batch_req_", transcript.request_id())},
               {"custom_id", custom_id},
               {"response",
                {{"status_code", 200},
                 {"request_id", transcript.request_id()},
                 {"body", std::move(body)}}},
               {"error", nullptr}});
}

std::string BatchError(std::string_view custom_id, std::string_view request_id,
                       const absl::Status& status) {
  const std::string code = absl::StatusCodeToString(status.code());
  const std::string message(status.message());
  const OrderedJson error = {{"code", code}, {"message", message}};
  return Dump(
      {{"id", absl::StrCat("batch_req_", absl::string_view(request_id.data(),
                                                           request_id.size()))},
       {"custom_id", custom_id},
       {"response",
        {{"status_code", HttpStatus(status.code())},
         {"request_id", request_id},
         {"body",
          {{"error",
            {{"message", message},
             {"type", code},
             {"param", nullptr},
             {"code", HttpStatus(status.code())}}}}}}},
       {"error", error}});
}

std::optional<std::string> SucceededId(std::string_view result_line) {
  const Json object =
      Json::parse(result_line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object() || !object.contains("error") ||
      !object["error"].is_null()) {
    return std::nullopt;
  }
  const auto id = object.find("custom_id");
  if (id == object.end() || !id->is_string()) return std::nullopt;
  return id->get<std::string>();
}

int HttpStatus(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kFailedPrecondition:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAlreadyExists:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return 499;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

}  // namespace portolan
