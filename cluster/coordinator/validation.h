#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "google/protobuf/message.h"
#include "proto/control.pb.h"
#include "proto/inference.pb.h"

namespace portolan {

struct RequestLimits {
  int64_t max_prompt_tokens = 1 << 20;
  int64_t max_prompt_bytes = 8 << 20;  // of a prompt that is text
};

// Policy: which requests are served. Each error names the field by its path,
// e.g. params.top_p, in its message and in a google.rpc.BadRequest that travels
// with the status.
//
// Errors: kInvalidArgument (missing, malformed, out of range), kUnimplemented
// (a field that this version does not know, or a value that it cannot serve).
absl::Status ValidateGenerate(const v1::GenerateRequest& request,
                              const RequestLimits& limits);
// What only a known model can refuse.
// Errors: kInvalidArgument (token id outside the vocabulary), kOutOfRange
// (prompt + max_tokens beyond the context; of a text prompt only the rank can
// tell).
absl::Status ValidateForModel(const v1::GenerateRequest& request,
                              const v1::ModelIdentity& model);

absl::Status ValidateWatch(const v1::WatchRequest& request);
absl::Status ValidateGet(const v1::GetRequest& request);
absl::Status ValidateList(const v1::ListRequest& request);
absl::Status ValidateCancel(const v1::CancelRequest& request);

// From ranks. Errors: kInvalidArgument naming the field.
absl::Status ValidateRegister(const v1::Register& message);
absl::Status ValidateDelta(const v1::TokenDelta& delta);

// kUnimplemented naming the first field, at any depth, that this version does
// not know.
absl::Status CheckUnknownFields(const google::protobuf::Message& message);

// Tokens of the prompt; an estimate where it is text (four bytes a token).
int64_t PromptTokens(const v1::GenerateRequest& request);

// `code` with a message "FIELD WHAT", and the BadRequest.
absl::Status FieldError(absl::StatusCode code, std::string_view field,
                        std::string_view what);
// A google.rpc.BadRequest that says which field the message is about.
absl::Status WithBadField(absl::Status status, std::string_view field);
// A google.rpc.RetryInfo that travels with the status.
absl::Status WithRetryInfo(absl::Status status, absl::Duration delay);
// Its delay; zero if there is none.
absl::Duration RetryDelay(const absl::Status& status);

}  // namespace portolan
