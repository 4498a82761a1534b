#include "runtime/model/tokenizer/regex.h"

#include <oniguruma.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/tokenizer/unicode.h"

namespace portolan {
namespace {

// Far above what a tokenizer's pattern needs (the longest known has 400), and
// low enough that a hostile one cannot exhaust the stack of Oniguruma's
// recursive parser.
constexpr size_t kMaxPatternBytes = 16384;
constexpr unsigned int kMaxParseDepth = 256;

const OnigUChar* Bytes(const char* text) {
  return reinterpret_cast<const OnigUChar*>(text);
}

void InitializeOnce() {
  static const bool done = [] {
    OnigEncoding encoding = ONIG_ENCODING_UTF8;
    PORTOLAN_CHECK(onig_initialize(&encoding, 1) == ONIG_NORMAL);
    onig_set_parse_depth_limit(kMaxParseDepth);
    return true;
  }();
  static_cast<void>(done);
}

std::string ErrorText(int code, OnigErrorInfo* info) {
  OnigUChar text[ONIG_MAX_ERROR_MESSAGE_LEN];
  const int length = info == nullptr ? onig_error_code_to_str(text, code)
                                     : onig_error_code_to_str(text, code, info);
  return std::string(reinterpret_cast<const char*>(text),
                     static_cast<size_t>(std::max(length, 0)));
}

// One search through one text, from match to match.
class Searcher {
 public:
  Searcher(regex_t* regex, std::string_view text)
      : regex_(regex),
        text_(text),
        region_(onig_region_new()),
        limits_(onig_new_match_param()) {
    PORTOLAN_CHECK(region_ != nullptr && limits_ != nullptr);
    // In proportion to the text, so that no pattern of a hostile file can
    // hold the caller for long. White space of n bytes needs about 3 n.
    const size_t steps = 1'000'000 + 64 * text.size();
    const unsigned int stack =
        static_cast<unsigned int>(std::min<size_t>(steps, size_t{1} << 30));
    onig_set_retry_limit_in_match_of_match_param(limits_, steps);
    onig_set_retry_limit_in_search_of_match_param(limits_, steps);
    onig_set_match_stack_limit_size_of_match_param(limits_, stack);
  }
  ~Searcher() {
    onig_region_free(region_, /*free_self=*/1);
    onig_free_match_param(limits_);
  }
  Searcher(const Searcher&) = delete;
  Searcher& operator=(const Searcher&) = delete;

  // The next match; nullopt after the last one.
  absl::StatusOr<std::optional<TextSpan>> Next() {
    while (from_ <= text_.size()) {
      const OnigUChar* begin = Bytes(text_.data());
      const OnigUChar* end = begin + text_.size();
      const int at =
          onig_search_with_param(regex_, begin, end, begin + from_, end,
                                 region_, ONIG_OPTION_NONE, limits_);
      if (at == ONIG_MISMATCH) break;
      if (at < 0) {
        return absl::ResourceExhaustedError(absl::StrCat(
            "regular expression given up: ", ErrorText(at, nullptr)));
      }
      const auto first = static_cast<size_t>(region_->beg[0]);
      const auto last = static_cast<size_t>(region_->end[0]);
      // \K inside a look-around can put the match before where it starts.
      if (first > last || first < from_) {
        return absl::InvalidArgumentError(
            "regular expression matches backwards");
      }
      if (first == last && last_end_ == last) {
        from_ += last < text_.size() ? CharAt(text_, last).num_bytes : 1;
        continue;
      }
      from_ = last;
      last_end_ = last;
      return TextSpan{first, last, true};
    }
    return std::nullopt;
  }

 private:
  regex_t* regex_;
  std::string_view text_;
  OnigRegion* region_;
  OnigMatchParam* limits_;
  size_t from_ = 0;
  size_t last_end_ = std::string_view::npos;  // of the last match
};

void FindLiteral(std::string_view text, std::string_view literal,
                 std::vector<TextSpan>& spans) {
  size_t last = 0;
  for (size_t at = text.find(literal); at != std::string_view::npos;
       at = text.find(literal, last)) {
    if (at > last) spans.push_back({last, at, false});
    last = at + literal.size();
    spans.push_back({at, last, true});
  }
  if (last < text.size() || spans.empty()) {
    spans.push_back({last, text.size(), false});
  }
}

}  // namespace

void Regex::Deleter::operator()(re_pattern_buffer* regex) const {
  onig_free(regex);
}

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  InitializeOnce();
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("regular expression of ", pattern.size(),
                     " bytes; at most ", kMaxPatternBytes, " are read"));
  }
  regex_t* regex = nullptr;
  OnigErrorInfo info{};
  const int code = onig_new(
      &regex, Bytes(pattern.data()), Bytes(pattern.data() + pattern.size()),
      ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_ONIGURUMA, &info);
  if (code != ONIG_NORMAL) {
    return absl::InvalidArgumentError(
        absl::StrCat("invalid regular expression ", Quoted(pattern), ": ",
                     ErrorText(code, &info)));
  }
  return Regex(regex);
}

absl::Status Regex::FindSpans(std::string_view text,
                              std::vector<TextSpan>& spans) const {
  spans.clear();
  if (text.empty()) {
    spans.push_back({0, 0, false});
    return absl::OkStatus();
  }
  Searcher searcher(regex_.get(), text);
  size_t last = 0;
  while (true) {
    PORTOLAN_ASSIGN_OR_RETURN(const std::optional<TextSpan> match,
                              searcher.Next());
    if (!match.has_value()) break;
    if (match->begin > last) spans.push_back({last, match->begin, false});
    spans.push_back(*match);
    last = match->end;
  }
  if (last < text.size()) spans.push_back({last, text.size(), false});
  return absl::OkStatus();
}

absl::StatusOr<TextPattern> TextPattern::FromJson(const JsonField& field) {
  if (const auto regex = field.Find("Regex")) {
    PORTOLAN_ASSIGN_OR_RETURN(const std::string source, regex->AsString());
    auto pattern = FromRegex(source);
    if (!pattern.ok())
      return regex->Error(std::string(pattern.status().message()));
    return pattern;
  }
  if (const auto literal = field.Find("String")) {
    PORTOLAN_ASSIGN_OR_RETURN(std::string text, literal->AsString());
    // The empty string matches as the empty regular expression does.
    if (text.empty()) return FromRegex("");
    return TextPattern(std::move(text));
  }
  return field.Error(
      "a pattern was expected, {\"String\": ...} or {\"Regex\": ...}");
}

absl::StatusOr<TextPattern> TextPattern::FromRegex(std::string_view regex) {
  PORTOLAN_ASSIGN_OR_RETURN(Regex compiled, Regex::Compile(regex));
  return TextPattern(std::move(compiled));
}

absl::Status TextPattern::FindSpans(std::string_view text,
                                    std::vector<TextSpan>& spans) const {
  if (regex_ != nullptr) return regex_->FindSpans(text, spans);
  spans.clear();
  FindLiteral(text, literal_, spans);
  return absl::OkStatus();
}

absl::StatusOr<std::string> TextPattern::Replace(
    std::string_view text, std::string_view replacement) const {
  std::vector<TextSpan> spans;
  PORTOLAN_RETURN_IF_ERROR(FindSpans(text, spans));
  std::string replaced;
  for (const TextSpan& span : spans) {
    replaced += span.is_match ? replacement
                              : text.substr(span.begin, span.end - span.begin);
  }
  return replaced;
}

}  // namespace portolan
