#include "runtime/model/tokenizer/pre_tokenizer.h"

#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/tokenizer/byte_alphabet.h"
#include "runtime/model/tokenizer/regex.h"
#include "runtime/model/tokenizer/unicode.h"

namespace portolan {
namespace {

// Where a piece is cut around the matches in it.
enum class SplitBehavior {
  kRemoved,             // matches are dropped
  kIsolated,            // each match is a piece
  kMergedWithPrevious,  // a match ends the piece before it
  kMergedWithNext,      // a match begins the piece after it
  kContiguous,          // matches side by side are one piece
};

using Spans = std::vector<TextSpan>;

// Joins each match to the span in front of it, unless that is a match too.
void MergeWithPrevious(Spans& spans) {
  size_t kept = 0;
  bool after_match = false;
  for (const TextSpan& span : spans) {
    if (span.is_match && !after_match && kept > 0) {
      spans[kept - 1].end = span.end;
    } else {
      spans[kept++] = span;
    }
    after_match = span.is_match;
  }
  spans.resize(kept);
}

void MergeWithNext(Spans& spans) {
  size_t kept = spans.size();
  bool before_match = false;
  for (size_t i = spans.size(); i-- > 0;) {
    const TextSpan span = spans[i];
    if (span.is_match && !before_match && kept < spans.size()) {
      spans[kept].begin = span.begin;
    } else {
      spans[--kept] = span;
    }
    before_match = span.is_match;
  }
  spans.erase(spans.begin(), spans.begin() + static_cast<ptrdiff_t>(kept));
}

void MergeNeighbours(Spans& spans) {
  size_t kept = 0;
  for (const TextSpan& span : spans) {
    if (kept > 0 && spans[kept - 1].is_match == span.is_match) {
      spans[kept - 1].end = span.end;
    } else {
      spans[kept++] = span;
    }
  }
  spans.resize(kept);
}

// Appends what becomes of `piece` when it is cut at `spans`, which are
// relative to its begin and are overwritten.
void CutPiece(const PieceList::Piece& piece, SplitBehavior behavior,
              Spans& spans, std::vector<PieceList::Piece>& out) {
  switch (behavior) {
    case SplitBehavior::kMergedWithPrevious:
      MergeWithPrevious(spans);
      break;
    case SplitBehavior::kMergedWithNext:
      MergeWithNext(spans);
      break;
    case SplitBehavior::kContiguous:
      MergeNeighbours(spans);
      break;
    case SplitBehavior::kIsolated:
    case SplitBehavior::kRemoved:
      break;
  }
  for (const TextSpan& span : spans) {
    const bool dropped = behavior == SplitBehavior::kRemoved && span.is_match;
    if (dropped || span.begin == span.end) continue;
    out.push_back({piece.begin + span.begin, piece.begin + span.end,
                   piece.at_start && span.begin == 0});
  }
}

std::string_view TextOf(const PieceList& list, const PieceList::Piece& piece) {
  return std::string_view(list.text).substr(piece.begin,
                                            piece.end - piece.begin);
}

// Cuts every piece at the spans that `find_spans(text, spans)` finds in it.
template <typename FindSpans>
absl::Status CutPieces(PieceList& list, SplitBehavior behavior,
                       FindSpans find_spans) {
  std::vector<PieceList::Piece> pieces;
  Spans spans;
  for (const PieceList::Piece& piece : list.pieces) {
    PORTOLAN_RETURN_IF_ERROR(find_spans(TextOf(list, piece), spans));
    CutPiece(piece, behavior, spans, pieces);
  }
  list.pieces = std::move(pieces);
  return absl::OkStatus();
}

// Cuts every piece around the single characters that `is_match(code)` picks.
template <typename IsMatch>
absl::Status CutPiecesAtChars(PieceList& list, SplitBehavior behavior,
                              IsMatch is_match) {
  return CutPieces(list, behavior, [&](std::string_view text, Spans& spans) {
    spans.clear();
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = CharAt(text, at);
      const bool match = is_match(c.code);
      if (!match && !spans.empty() && !spans.back().is_match) {
        spans.back().end = at + c.num_bytes;
      } else {
        spans.push_back({at, at + c.num_bytes, match});
      }
      at += c.num_bytes;
    }
    return absl::OkStatus();
  });
}

// Replaces the text of each piece by what `rewrite(text, at_start, out)`
// appends for it.
template <typename Rewrite>
void RewritePieces(PieceList& list, Rewrite rewrite) {
  std::string text;
  text.reserve(list.text.size() + list.text.size() / 2);
  for (PieceList::Piece& piece : list.pieces) {
    const size_t begin = text.size();
    rewrite(TextOf(list, piece), piece.at_start, text);
    piece.begin = begin;
    piece.end = text.size();
  }
  list.text = std::move(text);
}

class SequencePreTokenizer : public PreTokenizer {
 public:
  explicit SequencePreTokenizer(
      std::vector<std::unique_ptr<PreTokenizer>> parts)
      : parts_(std::move(parts)) {}

  absl::Status Apply(PieceList& list) const override {
    for (const auto& part : parts_) {
      PORTOLAN_RETURN_IF_ERROR(part->Apply(list));
    }
    return absl::OkStatus();
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

class SplitPreTokenizer : public PreTokenizer {
 public:
  SplitPreTokenizer(TextPattern pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  absl::Status Apply(PieceList& list) const override {
    return CutPieces(list, behavior_,
                     [this](std::string_view text, Spans& spans) {
                       return FindSpans(text, spans);
                     });
  }

 private:
  absl::Status FindSpans(std::string_view text, Spans& spans) const {
    PORTOLAN_RETURN_IF_ERROR(pattern_.FindSpans(text, spans));
    if (invert_) {
      for (TextSpan& span : spans) span.is_match = !span.is_match;
    }
    return absl::OkStatus();
  }

  TextPattern pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

class ByteLevelPreTokenizer : public PreTokenizer {
 public:
  ByteLevelPreTokenizer(bool add_prefix_space, std::optional<TextPattern> words)
      : add_prefix_space_(add_prefix_space), words_(std::move(words)) {}

  absl::Status Apply(PieceList& list) const override {
    if (add_prefix_space_) {
      RewritePieces(list, [](std::string_view text, bool, std::string& out) {
        if (text[0] != ' ') out += ' ';
        out += text;
      });
    }
    if (words_.has_value()) {
      PORTOLAN_RETURN_IF_ERROR(
          CutPieces(list, SplitBehavior::kIsolated,
                    [this](std::string_view text, Spans& spans) {
                      return words_->FindSpans(text, spans);
                    }));
    }
    RewritePieces(list, [](std::string_view text, bool, std::string& out) {
      AppendByteAlphabet(text, out);
    });
    return absl::OkStatus();
  }

 private:
  bool add_prefix_space_;
  std::optional<TextPattern> words_;
};

// Runs of word characters, and runs of what is neither word nor white space.
class WhitespacePreTokenizer : public PreTokenizer {
 public:
  absl::Status Apply(PieceList& list) const override {
    return CutPieces(list, SplitBehavior::kRemoved,
                     [](std::string_view text, Spans& spans) {
                       FindRuns(text, spans);
                       return absl::OkStatus();
                     });
  }

 private:
  enum class Run { kNone, kSpace, kWord, kOther };

  static void FindRuns(std::string_view text, Spans& spans) {
    spans.clear();
    Run last = Run::kNone;
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = CharAt(text, at);
      const Run run = IsWordCharacter(c.code) ? Run::kWord
                      : IsWhiteSpace(c.code)  ? Run::kSpace
                                              : Run::kOther;
      if (run != last) spans.push_back({at, at, run == Run::kSpace});
      at += c.num_bytes;
      spans.back().end = at;
      last = run;
    }
  }
};

class WhitespaceSplitPreTokenizer : public PreTokenizer {
 public:
  absl::Status Apply(PieceList& list) const override {
    return CutPiecesAtChars(list, SplitBehavior::kRemoved, IsWhiteSpace);
  }
};

class DigitsPreTokenizer : public PreTokenizer {
 public:
  explicit DigitsPreTokenizer(bool individual) : individual_(individual) {}

  absl::Status Apply(PieceList& list) const override {
    return CutPiecesAtChars(
        list,
        individual_ ? SplitBehavior::kIsolated : SplitBehavior::kContiguous,
        IsNumeric);
  }

 private:
  bool individual_;
};

class PunctuationPreTokenizer : public PreTokenizer {
 public:
  explicit PunctuationPreTokenizer(SplitBehavior behavior)
      : behavior_(behavior) {}

  absl::Status Apply(PieceList& list) const override {
    return CutPiecesAtChars(list, behavior_, IsPunctuation);
  }

 private:
  SplitBehavior behavior_;
};

enum class PrependScheme { kAlways, kFirst, kNever };

class MetaspacePreTokenizer : public PreTokenizer {
 public:
  MetaspacePreTokenizer(char32_t replacement, PrependScheme scheme, bool split)
      : replacement_(replacement), scheme_(scheme), split_(split) {
    AppendUtf8(replacement, replacement_text_);
  }

  absl::Status Apply(PieceList& list) const override {
    RewritePieces(
        list, [this](std::string_view text, bool at_start, std::string& out) {
          if (IsPrefixed(text, at_start)) out += replacement_text_;
          for (const char c : text) {
            if (c == ' ') {
              out += replacement_text_;
            } else {
              out += c;
            }
          }
        });
    if (!split_) return absl::OkStatus();
    return CutPiecesAtChars(
        list, SplitBehavior::kMergedWithNext,
        [this](char32_t code) { return code == replacement_; });
  }

 private:
  bool IsPrefixed(std::string_view text, bool at_start) const {
    if (scheme_ == PrependScheme::kNever) return false;
    if (scheme_ == PrependScheme::kFirst && !at_start) return false;
    return text[0] != ' ' && !text.starts_with(replacement_text_);
  }

  char32_t replacement_;
  std::string replacement_text_;
  PrependScheme scheme_;
  bool split_;
};

using Made = absl::StatusOr<std::unique_ptr<PreTokenizer>>;

absl::StatusOr<SplitBehavior> ReadBehavior(const JsonField& field,
                                           std::string_view fallback) {
  PORTOLAN_ASSIGN_OR_RETURN(const std::string name,
                            field.GetString("behavior", fallback));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return field.Error(
      absl::StrCat("the behavior ", Quoted(name), " is not supported"));
}

Made MakeSequence(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField list, field.Get("pretokenizers"));
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<JsonField> elements,
                            list.Elements());
  std::vector<std::unique_ptr<PreTokenizer>> parts;
  for (const JsonField& element : elements) {
    PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<PreTokenizer> part,
                              MakePreTokenizer(element));
    parts.push_back(std::move(part));
  }
  return std::make_unique<SequencePreTokenizer>(std::move(parts));
}

Made MakeByteLevel(const JsonField& field) {
  // The pattern of GPT-2's encoder.
  constexpr std::string_view kWords =
      R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)"
      R"(|\s+(?!\S)|\s+)";
  PORTOLAN_ASSIGN_OR_RETURN(const bool add_prefix_space,
                            field.GetBool("add_prefix_space", true));
  PORTOLAN_ASSIGN_OR_RETURN(const bool use_regex,
                            field.GetBool("use_regex", true));
  std::optional<TextPattern> words;
  if (use_regex) {
    PORTOLAN_ASSIGN_OR_RETURN(words, TextPattern::FromRegex(kWords));
  }
  return std::make_unique<ByteLevelPreTokenizer>(add_prefix_space,
                                                 std::move(words));
}

Made MakeSplit(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField pattern, field.Get("pattern"));
  PORTOLAN_ASSIGN_OR_RETURN(TextPattern compiled,
                            TextPattern::FromJson(pattern));
  PORTOLAN_ASSIGN_OR_RETURN(const SplitBehavior behavior,
                            ReadBehavior(field, ""));
  PORTOLAN_ASSIGN_OR_RETURN(const bool invert, field.GetBool("invert", false));
  return std::make_unique<SplitPreTokenizer>(std::move(compiled), behavior,
                                             invert);
}

template <typename T>
Made MakePlain(const JsonField&) {
  return std::make_unique<T>();
}

Made MakeDigits(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const bool individual,
                            field.GetBool("individual_digits", false));
  return std::make_unique<DigitsPreTokenizer>(individual);
}

Made MakePunctuation(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const SplitBehavior behavior,
                            ReadBehavior(field, "Isolated"));
  return std::make_unique<PunctuationPreTokenizer>(behavior);
}

// Older files have add_prefix_space where newer ones have prepend_scheme.
absl::StatusOr<PrependScheme> ReadPrependScheme(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const bool add_prefix_space,
                            field.GetBool("add_prefix_space", true));
  PORTOLAN_ASSIGN_OR_RETURN(
      const std::string name,
      field.GetString("prepend_scheme", add_prefix_space ? "always" : "never"));
  if (!add_prefix_space && name != "never") {
    return field.Error(absl::StrCat("add_prefix_space false contradicts ",
                                    "prepend_scheme ", Quoted(name)));
  }
  if (name == "always") return PrependScheme::kAlways;
  if (name == "first") return PrependScheme::kFirst;
  if (name == "never") return PrependScheme::kNever;
  return field.Error(
      absl::StrCat("the prepend_scheme ", Quoted(name), " is not supported"));
}

Made MakeMetaspace(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const char32_t replacement,
                            field.GetChar("replacement"));
  PORTOLAN_ASSIGN_OR_RETURN(const PrependScheme scheme,
                            ReadPrependScheme(field));
  PORTOLAN_ASSIGN_OR_RETURN(const bool split, field.GetBool("split", true));
  return std::make_unique<MetaspacePreTokenizer>(replacement, scheme, split);
}

struct Kind {
  std::string_view type;
  Made (*make)(const JsonField& field);
};

constexpr Kind kKinds[] = {
    {"Sequence", MakeSequence},
    {"ByteLevel", MakeByteLevel},
    {"Split", MakeSplit},
    {"Whitespace", MakePlain<WhitespacePreTokenizer>},
    {"WhitespaceSplit", MakePlain<WhitespaceSplitPreTokenizer>},
    {"Digits", MakeDigits},
    {"Punctuation", MakePunctuation},
    {"Metaspace", MakeMetaspace},
};

}  // namespace

absl::StatusOr<std::unique_ptr<PreTokenizer>> MakePreTokenizer(
    const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const std::string type, field.GetString("type"));
  for (const Kind& kind : kKinds) {
    if (kind.type == type) return kind.make(field);
  }
  return field.Error(
      absl::StrCat("the pre-tokenizer ", Quoted(type), " is not supported"));
}

}  // namespace portolan
