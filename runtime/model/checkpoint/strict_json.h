#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace portolan {

// Parses a JSON object from outside. `file` is for messages alone. Refused are
// also what JSON leaves open and an attacker would use: a key that occurs
// twice in an object, objects and arrays nested deeper than 32.
// Errors: kInvalidArgument naming the file, the byte and, if twice, the key.
absl::StatusOr<nlohmann::json> ParseJsonObject(const std::string& file,
                                               std::string_view text);

// A whole small text file. Errors: kNotFound, kInvalidArgument (no regular
// file, or more than max_bytes), kUnavailable (read error); all name the file.
absl::StatusOr<std::string> ReadTextFile(const std::string& path,
                                         size_t max_bytes);

}  // namespace portolan
