#include "clients/cc/transcript.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace portolan {

std::string_view FinishReasonText(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CANCELLED:
      return "cancelled";
    case v1::FINISH_REASON_ERROR:
      return "error";
    default:
      return "unfinished";
  }
}

absl::Status Transcript::Add(const v1::GenerateResponse& response) {
  if (finished_) {
    return absl::DataLossError(
        absl::StrCat("request ", request_id_, ": a message after the end"));
  }
  if (!request_id_.empty() && response.request_id() != request_id_) {
    return absl::DataLossError(absl::StrCat("request ", request_id_,
                                            ": a message of request ",
                                            response.request_id()));
  }
  if (response.token_ids_size() > 0 && response.offset() != next_offset()) {
    return absl::DataLossError(
        absl::StrCat("request ", response.request_id(), ": token ",
                     response.offset(), " came in place of ", next_offset()));
  }
  request_id_ = response.request_id();
  if (!response.custom_id().empty()) custom_id_ = response.custom_id();
  if (response.seed() != 0) seed_ = response.seed();
  tokens_.insert(tokens_.end(), response.token_ids().begin(),
                 response.token_ids().end());
  text_ += response.text();
  logprobs_.insert(logprobs_.end(), response.logprobs().begin(),
                   response.logprobs().end());
  if (response.has_finish()) {
    finished_ = true;
    finish_ = response.finish();
    text_ += finish_.text_tail();
  }
  return absl::OkStatus();
}

absl::Status Transcript::Outcome() const {
  if (!finished_) return absl::UnavailableError("the request has not ended");
  switch (finish_.reason()) {
    case v1::FINISH_REASON_CANCELLED:
      return absl::CancelledError("the request was cancelled");
    case v1::FINISH_REASON_ERROR:
      return absl::Status(static_cast<absl::StatusCode>(finish_.error().code()),
                          finish_.error().message());
    default:
      return absl::OkStatus();
  }
}

std::string ToJson(const Transcript& transcript) {
  const v1::Finish& finish = transcript.finish();
  nlohmann::ordered_json json;
  json["id"] = transcript.custom_id().empty() ? transcript.request_id()
                                              : transcript.custom_id();
  json["prompt_tokens"] = finish.usage().prompt_tokens();
  json["tokens"] = transcript.tokens();
  json["text"] = transcript.text();
  json["finish_reason"] = FinishReasonText(finish.reason());
  json["ttft_s"] = finish.ttft_s();
  json["tpot_s"] = finish.tpot_s();
  json["request_id"] = transcript.request_id();
  json["seed"] = transcript.seed();
  if (finish.has_error()) json["error"] = finish.error().message();
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace portolan
