#include "launcher/prompts.h"

#include <concepts>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/checkpoint/strict_json.h"

namespace portolan {
namespace {

using Json = nlohmann::json;

absl::Status WrongType(std::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat(
      "must be ", absl::string_view(wanted.data(), wanted.size())));
}

// Take(): the value of a field, or what it must be.

absl::Status Take(const Json& value, double& out) {
  if (!value.is_number()) return WrongType("a number");
  out = value.get<double>();
  return absl::OkStatus();
}

absl::Status Take(const Json& value, bool& out) {
  if (!value.is_boolean()) return WrongType("true or false");
  out = value.get<bool>();
  return absl::OkStatus();
}

template <std::integral Integer>
absl::Status Take(const Json& value, Integer& out) {
  const bool fits = value.is_number_integer() &&
                    (value.is_number_unsigned()
                         ? std::in_range<Integer>(value.get<uint64_t>())
                         : std::in_range<Integer>(value.get<int64_t>()));
  if (!fits) return WrongType("an integer in range");
  out = value.get<Integer>();
  return absl::OkStatus();
}

absl::Status Take(const Json& value, std::string& out) {
  if (!value.is_string()) return WrongType("a string");
  out = value.get<std::string>();
  return absl::OkStatus();
}

template <typename T>
absl::Status Take(const Json& value, std::vector<T>& out) {
  if (!value.is_array()) return WrongType("a list");
  for (const Json& item : value) {
    T taken{};
    if (absl::Status status = Take(item, taken); !status.ok()) {
      return WrongType(
          absl::StrCat("a list, and item ", out.size(), " ", status.message()));
    }
    out.push_back(std::move(taken));
  }
  return absl::OkStatus();
}

absl::Status TakeId(const Json& value, Prompt& prompt) {
  if (!value.is_string() && !value.is_number_integer()) {
    return WrongType("a string or an integer");
  }
  prompt.id = value.is_string() ? value.get<std::string>() : value.dump();
  return absl::OkStatus();
}

absl::Status TakeStops(const Json& value, Prompt& prompt) {
  std::vector<std::string> stops;
  PORTOLAN_RETURN_IF_ERROR(
      Take(value.is_string() ? Json::array({value}) : value, stops));
  prompt.wishes.stop = std::move(stops);
  return absl::OkStatus();
}

absl::Status TakeTokens(const Json& value, Prompt& prompt) {
  return Take(value, prompt.tokens.emplace());
}

// The one field that is there for clients of other programs.
absl::Status TakeNumber(const Json& value, Prompt&) {
  return value == 1 ? absl::OkStatus() : WrongType("1: one answer a prompt");
}

using Reader = std::function<absl::Status(const Json&, Prompt&)>;

template <typename T>
Reader Wish(std::optional<T> SamplingWishes::*wish) {
  return [wish](const Json& value, Prompt& prompt) {
    return Take(value, (prompt.wishes.*wish).emplace());
  };
}

Reader Label() {
  return [](const Json&, Prompt&) { return absl::OkStatus(); };
}

const std::map<std::string, Reader>& Readers() {
  using W = SamplingWishes;
  static const std::map<std::string, Reader> readers = {
      {"id", TakeId},
      {"prompt",
       [](const Json& value, Prompt& p) { return Take(value, p.text); }},
      {"prompt_tokens", TakeTokens},
      {"domain", Label()},
      {"metadata", Label()},
      {"n", TakeNumber},
      {"max_tokens", Wish(&W::max_tokens)},
      {"temperature", Wish(&W::temperature)},
      {"top_k", Wish(&W::top_k)},
      {"top_p", Wish(&W::top_p)},
      {"min_p", Wish(&W::min_p)},
      {"seed", Wish(&W::seed)},
      {"stop", TakeStops},
      {"stop_token_ids", Wish(&W::stop_token_ids)},
      {"ignore_eos", Wish(&W::ignore_eos)},
      {"logprobs", Wish(&W::logprobs)},
      {"repetition_penalty", Wish(&W::repetition_penalty)},
      {"presence_penalty", Wish(&W::presence_penalty)},
      {"frequency_penalty", Wish(&W::frequency_penalty)}};
  return readers;
}

absl::Status FieldError(const std::string& where, const std::string& field,
                        std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": field \"", field, "\" ",
                   absl::string_view(what.data(), what.size())));
}

absl::StatusOr<Prompt> ParsePrompt(const std::string& line,
                                   const std::string& where) {
  PORTOLAN_ASSIGN_OR_RETURN(const Json object, ParseJsonObject(where, line));
  Prompt prompt;
  prompt.where = where;
  for (const auto& [key, value] : object.items()) {
    const auto reader = Readers().find(key);
    if (reader == Readers().end()) {
      return FieldError(where, key,
                        "is not known; a label of your own goes into "
                        "\"metadata\"");
    }
    if (absl::Status status = reader->second(value, prompt); !status.ok()) {
      return FieldError(where, key, std::string(status.message()));
    }
  }
  if (object.contains("prompt") == prompt.tokens.has_value()) {
    return FieldError(where, prompt.tokens ? "prompt_tokens" : "prompt",
                      prompt.tokens ? "and \"prompt\" exclude each other"
                                    : "(or \"prompt_tokens\") is missing");
  }
  return prompt;
}

}  // namespace

absl::StatusOr<std::vector<Prompt>> ParsePrompts(std::string_view jsonl,
                                                 std::string_view name) {
  const absl::string_view file(name.data(), name.size());
  std::vector<Prompt> prompts;
  std::map<std::string, int64_t> line_of_id;
  std::istringstream lines{std::string(jsonl)};
  std::string line;
  for (int64_t number = 1; std::getline(lines, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    PORTOLAN_ASSIGN_OR_RETURN(
        Prompt prompt,
        ParsePrompt(line, absl::StrCat(file, ", line ", number)));
    if (prompt.id.empty()) prompt.id = std::to_string(prompts.size());
    const auto [other, is_new] = line_of_id.emplace(prompt.id, number);
    if (!is_new) {
      return FieldError(prompt.where, "id",
                        absl::StrCat("\"", prompt.id, "\" is that of line ",
                                     other->second, ", too"));
    }
    prompts.push_back(std::move(prompt));
  }
  if (prompts.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(file, " holds no prompt"));
  }
  return prompts;
}

absl::StatusOr<std::vector<Prompt>> ReadPrompts(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat("--prompts: cannot open ", path));
  }
  if (std::filesystem::is_directory(path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompts: ", path, " is a directory"));
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
  fill(merged.stop_token_ids, defaults.stop_token_ids);
  fill(merged.ignore_eos, defaults.ignore_eos);
  fill(merged.logprobs, defaults.logprobs);
  fill(merged.repetition_penalty, defaults.repetition_penalty);
  fill(merged.presence_penalty, defaults.presence_penalty);
  fill(merged.frequency_penalty, defaults.frequency_penalty);
  return merged;
}

}  // namespace portolan
