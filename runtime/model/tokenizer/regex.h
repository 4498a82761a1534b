#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/model/tokenizer/json_field.h"

struct re_pattern_buffer;  // Oniguruma's regex

namespace portolan {

// A part of a text, and whether it matches the pattern looked for.
struct TextSpan {
  size_t begin;
  size_t end;
  bool is_match;
};

// A regular expression in Oniguruma's own syntax, the one in which
// tokenizer.json files are written.
//
// Thread-safe.
class Regex {
 public:
  // Errors: kInvalidArgument with Oniguruma's reason.
  static absl::StatusOr<Regex> Compile(std::string_view pattern);

  // Covers `text` from begin to end with spans, in order: the matches, as
  // leftmost non-overlapping search finds them, and what is between them. An
  // empty match is a span of its own, except right behind another match. An
  // empty text gives one empty span that is no match. Replaces `spans`.
  // Errors: kResourceExhausted if the search backtracks without bound.
  absl::Status FindSpans(std::string_view text,
                         std::vector<TextSpan>& spans) const;

 private:
  struct Deleter {
    void operator()(re_pattern_buffer* regex) const;
  };
  explicit Regex(re_pattern_buffer* regex) : regex_(regex) {}

  std::unique_ptr<re_pattern_buffer, Deleter> regex_;
};

// What tokenizer.json calls a pattern: {"String": s} or {"Regex": r}.
//
// Thread-safe.
class TextPattern {
 public:
  // Errors: kInvalidArgument naming the path, and the reason of a bad regex.
  static absl::StatusOr<TextPattern> FromJson(const JsonField& field);
  static absl::StatusOr<TextPattern> FromRegex(std::string_view regex);

  // As Regex::FindSpans().
  absl::Status FindSpans(std::string_view text,
                         std::vector<TextSpan>& spans) const;

  // `text` with each match replaced. Errors: as FindSpans().
  absl::StatusOr<std::string> Replace(std::string_view text,
                                      std::string_view replacement) const;

  // The string looked for; empty if the pattern is a regular expression.
  const std::string& literal() const { return literal_; }

 private:
  explicit TextPattern(std::string literal) : literal_(std::move(literal)) {}
  explicit TextPattern(Regex regex)
      : regex_(std::make_unique<Regex>(std::move(regex))) {}

  std::string literal_;
  std::unique_ptr<Regex> regex_;  // null for a literal
};

}  // namespace portolan
