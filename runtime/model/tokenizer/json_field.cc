#include "runtime/model/tokenizer/json_field.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/tokenizer/unicode.h"

namespace portolan {
namespace {

constexpr int kMaxDepth = 64;

// Deepest nesting of brackets outside strings.
int NestingDepth(std::string_view text) {
  int depth = 0;
  int deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

std::string Quoted(std::string_view text) {
  constexpr size_t kMaxBytes = 80;
  std::string quoted =
      absl::StrCat("\"",
                   absl::Utf8SafeCEscape(absl::string_view(
                       text.data(), std::min(text.size(), kMaxBytes))),
                   "\"");
  if (text.size() > kMaxBytes) quoted += "...";
  return quoted;
}

absl::StatusOr<nlohmann::json> ParseJsonText(std::string_view text,
                                             const std::string& file) {
  if (NestingDepth(text) > kMaxDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": nested deeper than ", kMaxDepth, " levels"));
  }
  // The one place where the library may throw: without exceptions it does not
  // say where the text is broken.
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": no valid JSON: ", e.what()));
  }
}

absl::Status JsonField::Error(const std::string& what) const {
  return absl::InvalidArgumentError(
      absl::StrCat(*file_, ": ", path_, path_.empty() ? "" : ": ", what));
}

std::optional<JsonField> JsonField::Find(std::string_view name) const {
  if (!value_->is_object()) return std::nullopt;
  const std::string key(name);
  const auto member = value_->find(key);
  if (member == value_->end() || member->is_null()) return std::nullopt;
  return JsonField(*member, *file_,
                   path_.empty() ? key : absl::StrCat(path_, ".", key));
}

absl::StatusOr<JsonField> JsonField::Get(std::string_view name) const {
  if (!value_->is_object()) {
    return Error(
        absl::StrCat("an object was expected, not ", value_->type_name()));
  }
  std::optional<JsonField> member = Find(name);
  if (!member.has_value()) {
    return Error(absl::StrCat("the field ", Quoted(name), " is missing"));
  }
  return *std::move(member);
}

absl::StatusOr<std::vector<JsonField>> JsonField::Elements() const {
  if (!value_->is_array()) {
    return Error(
        absl::StrCat("an array was expected, not ", value_->type_name()));
  }
  std::vector<JsonField> elements;
  elements.reserve(value_->size());
  for (size_t i = 0; i < value_->size(); ++i) {
    elements.emplace_back((*value_)[i], *file_,
                          absl::StrCat(path_, "[", i, "]"));
  }
  return elements;
}

absl::StatusOr<std::string> JsonField::GetString(std::string_view name) const {
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField member, Get(name));
  return member.AsString();
}

absl::StatusOr<std::string> JsonField::GetString(
    std::string_view name, std::string_view fallback) const {
  const std::optional<JsonField> member = Find(name);
  if (!member.has_value()) return std::string(fallback);
  return member->AsString();
}

absl::StatusOr<bool> JsonField::GetBool(std::string_view name,
                                        bool fallback) const {
  const std::optional<JsonField> member = Find(name);
  if (!member.has_value()) return fallback;
  return member->AsBool();
}

absl::StatusOr<int64_t> JsonField::GetInt(std::string_view name,
                                          int64_t limit) const {
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField member, Get(name));
  return member.AsInt(limit);
}

absl::StatusOr<char32_t> JsonField::GetChar(std::string_view name) const {
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField member, Get(name));
  PORTOLAN_ASSIGN_OR_RETURN(const std::string text, member.AsString());
  const std::u32string codes = ToCodePoints(text);
  if (codes.size() != 1) {
    return member.Error(
        absl::StrCat("one character was expected, not ", Quoted(text)));
  }
  return codes[0];
}

absl::StatusOr<std::string> JsonField::AsString() const {
  const auto* text = value_->get_ptr<const std::string*>();
  if (text == nullptr) {
    return Error(
        absl::StrCat("a string was expected, not ", value_->type_name()));
  }
  return *text;
}

absl::StatusOr<bool> JsonField::AsBool() const {
  const auto* flag = value_->get_ptr<const bool*>();
  if (flag == nullptr) {
    return Error(
        absl::StrCat("true or false was expected, not ", value_->type_name()));
  }
  return *flag;
}

absl::StatusOr<int64_t> JsonField::AsInt(int64_t limit) const {
  // A number without sign or fraction is stored as unsigned.
  const auto* number =
      value_->get_ptr<const nlohmann::json::number_unsigned_t*>();
  if (number == nullptr || *number >= static_cast<uint64_t>(limit)) {
    return Error(absl::StrCat(
        "an integer from 0 to ", limit - 1, " was expected, not ",
        value_->is_number() ? value_->dump() : value_->type_name()));
  }
  return static_cast<int64_t>(*number);
}

}  // namespace portolan
