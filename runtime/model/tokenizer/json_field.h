#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace portolan {

// Parses `text`, the contents of `file` (a name for errors).
// Errors: kInvalidArgument naming the file and the position; also for nesting
// past 64 levels, which no tokenizer needs.
absl::StatusOr<nlohmann::json> ParseJsonText(std::string_view text,
                                             const std::string& file);

// A value of a parsed JSON file together with its place in it, so that every
// complaint names the file and the path: "tokenizer.json: decoder.type: ...".
// All errors are kInvalidArgument; a value of another type is an error and
// never throws.
//
// A view: the json value and `file` must outlive it. Thread-compatible.
class JsonField {
 public:
  JsonField(const nlohmann::json& value, const std::string& file,
            std::string path = "")
      : value_(&value), file_(&file), path_(std::move(path)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& path() const { return path_; }

  // The error that `what` is wrong with this value.
  absl::Status Error(const std::string& what) const;

  // The member `name` of this object, or nullopt if it is absent or null, or
  // this is no object.
  std::optional<JsonField> Find(std::string_view name) const;
  // As Find(), but absence is an error.
  absl::StatusOr<JsonField> Get(std::string_view name) const;
  // The elements of this array.
  absl::StatusOr<std::vector<JsonField>> Elements() const;

  absl::StatusOr<std::string> GetString(std::string_view name) const;
  // `fallback` stands for an absent or null member.
  absl::StatusOr<std::string> GetString(std::string_view name,
                                        std::string_view fallback) const;
  absl::StatusOr<bool> GetBool(std::string_view name, bool fallback) const;
  // An integer in [0, limit).
  absl::StatusOr<int64_t> GetInt(std::string_view name, int64_t limit) const;
  // The member `name`, a string of exactly one character.
  absl::StatusOr<char32_t> GetChar(std::string_view name) const;

  absl::StatusOr<std::string> AsString() const;
  absl::StatusOr<bool> AsBool() const;
  absl::StatusOr<int64_t> AsInt(int64_t limit) const;

 private:
  const nlohmann::json* value_;
  const std::string* file_;
  std::string path_;
};

// `text` in quotes, escaped and shortened, for errors.
std::string Quoted(std::string_view text);

}  // namespace portolan
