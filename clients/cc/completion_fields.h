#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "absl/status/status.h"
#include "proto/inference.pb.h"

namespace portolan {

// Sets what `field` of an OpenAI completion says: prompt, model, sampling.
// Errors: kInvalidArgument (type), kUnimplemented (no such field, or a value
// that is not served); both name the field.
absl::Status TakeCompletionField(const std::string& field,
                                 const nlohmann::json& value,
                                 v1::GenerateRequest& request);

// The tokens or the text of a prompt; errors name `field`.
absl::Status TakePrompt(const std::string& field, const nlohmann::json& value,
                        v1::GenerateRequest& request);

}  // namespace portolan
