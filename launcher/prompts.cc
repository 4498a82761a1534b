#include "launcher/prompts.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

using Json = nlohmann::json;

absl::Status WrongType(std::string_view key, std::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("field \"", key.data(), "\" must be ", wanted.data()));
}

absl::Status Take(const Json& value, const char* key,
                  std::optional<double>& out) {
  if (!value.is_number()) return WrongType(key, "a number");
  out = value.get<double>();
  return absl::OkStatus();
}

template <typename Integer>
absl::Status TakeInteger(const Json& value, const char* key,
                         std::optional<Integer>& out) {
  const bool fits = value.is_number_integer() &&
                    (value.is_number_unsigned()
                         ? std::in_range<Integer>(value.get<uint64_t>())
                         : std::in_range<Integer>(value.get<int64_t>()));
  if (!fits) return WrongType(key, "an integer in range");
  out = value.get<Integer>();
  return absl::OkStatus();
}

absl::Status TakeStops(const Json& value,
                       std::optional<std::vector<std::string>>& out) {
  std::vector<std::string> stops;
  const Json list = value.is_string() ? Json::array({value}) : value;
  if (!list.is_array()) return WrongType("stop", "a string or a list of them");
  for (const Json& stop : list) {
    if (!stop.is_string())
      return WrongType("stop", "a string or a list of them");
    stops.push_back(stop.get<std::string>());
  }
  out = std::move(stops);
  return absl::OkStatus();
}

absl::Status TakeTokens(const Json& value,
                        std::optional<std::vector<int32_t>>& out) {
  if (!value.is_array()) return WrongType("prompt_tokens", "a list of ids");
  std::vector<int32_t> tokens;
  for (const Json& item : value) {
    std::optional<int32_t> token;
    PORTOLAN_RETURN_IF_ERROR(TakeInteger(item, "prompt_tokens", token));
    tokens.push_back(*token);
  }
  out = std::move(tokens);
  return absl::OkStatus();
}

absl::Status TakeField(const std::string& key, const Json& value,
                       Prompt& prompt) {
  SamplingWishes& wishes = prompt.wishes;
  if (key == "id") {
    if (!value.is_string() && !value.is_number_integer()) {
      return WrongType(key, "a string or an integer");
    }
    prompt.id = value.is_string() ? value.get<std::string>() : value.dump();
    return absl::OkStatus();
  }
  if (key == "prompt") {
    if (!value.is_string()) return WrongType(key, "a string");
    prompt.text = value.get<std::string>();
    return absl::OkStatus();
  }
  if (key == "prompt_tokens") return TakeTokens(value, prompt.tokens);
  if (key == "max_tokens")
    return TakeInteger(value, "max_tokens", wishes.max_tokens);
  if (key == "top_k") return TakeInteger(value, "top_k", wishes.top_k);
  if (key == "seed") return TakeInteger(value, "seed", wishes.seed);
  if (key == "temperature")
    return Take(value, "temperature", wishes.temperature);
  if (key == "top_p") return Take(value, "top_p", wishes.top_p);
  if (key == "min_p") return Take(value, "min_p", wishes.min_p);
  if (key == "stop") return TakeStops(value, wishes.stop);
  return absl::OkStatus();  // other fields are the user's own (a domain, ...)
}

absl::StatusOr<Prompt> ParsePrompt(const std::string& line) {
  const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) {
    return absl::InvalidArgumentError("not a JSON object");
  }
  if (!object.is_object()) {
    return absl::InvalidArgumentError("not a JSON object");
  }
  Prompt prompt;
  for (const auto& [key, value] : object.items()) {
    PORTOLAN_RETURN_IF_ERROR(TakeField(key, value, prompt));
  }
  if (!object.contains("prompt") && !prompt.tokens.has_value()) {
    return absl::InvalidArgumentError(
        "field \"prompt\" (or \"prompt_tokens\") is missing");
  }
  return prompt;
}

}  // namespace

absl::StatusOr<std::vector<Prompt>> ParsePrompts(std::string_view jsonl,
                                                 std::string_view name) {
  std::vector<Prompt> prompts;
  std::istringstream lines{std::string(jsonl)};
  std::string line;
  for (int64_t number = 1; std::getline(lines, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    absl::StatusOr<Prompt> prompt = ParsePrompt(line);
    if (!prompt.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(absl::string_view(name.data(), name.size()), ", line ",
                       number, ": ", prompt.status().message()));
    }
    if (prompt->id.empty()) prompt->id = std::to_string(prompts.size());
    prompts.push_back(*std::move(prompt));
  }
  if (prompts.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        absl::string_view(name.data(), name.size()), " holds no prompt"));
  }
  return prompts;
}

absl::StatusOr<std::vector<Prompt>> ReadPrompts(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat("--prompts: cannot open ", path));
  }
  std::ostringstream text;
  text << file.rdbuf();
  return ParsePrompts(text.str(), path);
}

SamplingWishes Merge(const SamplingWishes& wishes,
                     const SamplingWishes& defaults) {
  SamplingWishes merged = wishes;
  const auto fill = [](auto& value, const auto& other) {
    if (!value.has_value()) value = other;
  };
  fill(merged.max_tokens, defaults.max_tokens);
  fill(merged.temperature, defaults.temperature);
  fill(merged.top_k, defaults.top_k);
  fill(merged.top_p, defaults.top_p);
  fill(merged.min_p, defaults.min_p);
  fill(merged.seed, defaults.seed);
  fill(merged.stop, defaults.stop);
  return merged;
}

}  // namespace portolan
