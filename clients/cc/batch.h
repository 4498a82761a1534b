#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "clients/cc/transcript.h"
#include "proto/inference.pb.h"

namespace portolan {

// A line of a batch, in OpenAI's form: {"custom_id", "method": "POST", "url":
// "/v1/completions", "body": {...}}. The body knows the fields of that call and
// the usual extensions (top_k, min_p, repetition_penalty, ignore_eos,
// stop_token_ids); a field that is null counts as absent.
struct BatchLine {
  std::string custom_id;
  // kInvalidArgument or kUnimplemented naming the field if the body cannot be
  // served; the line then has an error for its result.
  absl::Status status;
  v1::GenerateRequest request;
};

// Errors: kInvalidArgument if it is no line of a batch at all.
absl::StatusOr<BatchLine> ParseBatchLine(std::string_view line);

// The idempotency key of a line, the same in every run; `attempt` counts
// from 1. At most 128 bytes, as the service takes them: of a longer one the end
// becomes a digest. Two lines that meet in a key all the same are an error of
// the second one, for the service compares the requests.
std::string BatchKey(std::string_view prefix, std::string_view custom_id,
                     int attempt);

// The line of the result: {"id", "custom_id", "response": {"status_code",
// "request_id", "body"}, "error"}; "error" is null exactly if it worked.
std::string BatchResult(std::string_view custom_id, std::string_view model,
                        absl::Time created, const Transcript& transcript);
std::string BatchError(std::string_view custom_id, std::string_view request_id,
                       const absl::Status& status);

// The custom_id of a result line that worked; nothing for any other text.
std::optional<std::string> SucceededId(std::string_view result_line);

// The status of HTTP that says the same.
int HttpStatus(absl::StatusCode code);

}  // namespace portolan
