#include "runtime/model/tokenizer/normalizer.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/tokenizer/byte_alphabet.h"
#include "runtime/model/tokenizer/regex.h"
#include "runtime/model/tokenizer/unicode.h"

namespace portolan {
namespace {

class SequenceNormalizer : public Normalizer {
 public:
  explicit SequenceNormalizer(std::vector<std::unique_ptr<Normalizer>> parts)
      : parts_(std::move(parts)) {}

  absl::Status Apply(NormalizedText& text) const override {
    for (const auto& part : parts_) {
      PORTOLAN_RETURN_IF_ERROR(part->Apply(text));
    }
    return absl::OkStatus();
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

class UnicodeNormalizer : public Normalizer {
 public:
  explicit UnicodeNormalizer(NormalForm form) : form_(form) {}

  absl::Status Apply(NormalizedText& text) const override {
    text.text = ToNormalForm(form_, text.text);
    return absl::OkStatus();
  }

 private:
  NormalForm form_;
};

class LowercaseNormalizer : public Normalizer {
 public:
  absl::Status Apply(NormalizedText& text) const override {
    std::string lower;
    lower.reserve(text.text.size());
    for (size_t at = 0; at < text.text.size();) {
      const Utf8Char c = CharAt(text.text, at);
      AppendLowerCase(c.code, lower);
      at += c.num_bytes;
    }
    text.text = std::move(lower);
    return absl::OkStatus();
  }
};

class PrependNormalizer : public Normalizer {
 public:
  explicit PrependNormalizer(std::string prefix) : prefix_(std::move(prefix)) {}

  absl::Status Apply(NormalizedText& text) const override {
    if (!text.text.empty()) text.text.insert(0, prefix_);
    return absl::OkStatus();
  }

 private:
  std::string prefix_;
};

class ReplaceNormalizer : public Normalizer {
 public:
  ReplaceNormalizer(TextPattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}

  absl::Status Apply(NormalizedText& text) const override {
    PORTOLAN_ASSIGN_OR_RETURN(std::string replaced,
                              pattern_.Replace(text.text, content_));
    if (content_.empty() && text.at_start) {
      text.at_start = CharAfterFirstSurvives(text.text);
    }
    text.text = std::move(replaced);
    return absl::OkStatus();
  }

 private:
  // Whether deleting the matches leaves the first character where it is.
  bool CharAfterFirstSurvives(const std::string& text) const {
    std::vector<TextSpan> spans;
    if (!pattern_.FindSpans(text, spans).ok()) return false;
    return !spans[0].is_match || spans[0].begin == spans[0].end;
  }

  TextPattern pattern_;
  std::string content_;
};

class StripNormalizer : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}

  absl::Status Apply(NormalizedText& text) const override {
    size_t begin = text.text.size();
    size_t end = 0;
    for (size_t at = 0; at < text.text.size();) {
      const Utf8Char c = CharAt(text.text, at);
      if (!IsWhiteSpace(c.code)) {
        if (begin > at) begin = at;
        end = at + c.num_bytes;
      }
      at += c.num_bytes;
    }
    if (begin > end) begin = end = left_ ? text.text.size() : 0;  // all space
    if (!left_) begin = 0;
    if (!right_) end = text.text.size();
    if (begin > 0) text.at_start = false;
    text.text = text.text.substr(begin, end - begin);
    return absl::OkStatus();
  }

 private:
  bool left_;
  bool right_;
};

class StripAccentsNormalizer : public Normalizer {
 public:
  absl::Status Apply(NormalizedText& text) const override {
    std::string plain;
    plain.reserve(text.text.size());
    for (size_t at = 0; at < text.text.size();) {
      const Utf8Char c = CharAt(text.text, at);
      if (!IsNonspacingMark(c.code)) {
        plain.append(text.text, at, c.num_bytes);
      } else if (at == 0) {
        text.at_start = false;
      }
      at += c.num_bytes;
    }
    text.text = std::move(plain);
    return absl::OkStatus();
  }
};

class ByteLevelNormalizer : public Normalizer {
 public:
  absl::Status Apply(NormalizedText& text) const override {
    std::string characters;
    AppendByteAlphabet(text.text, characters);
    text.text = std::move(characters);
    return absl::OkStatus();
  }
};

using Made = absl::StatusOr<std::unique_ptr<Normalizer>>;

Made MakeSequence(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField list, field.Get("normalizers"));
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<JsonField> elements,
                            list.Elements());
  std::vector<std::unique_ptr<Normalizer>> parts;
  for (const JsonField& element : elements) {
    PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<Normalizer> part,
                              MakeNormalizer(element));
    parts.push_back(std::move(part));
  }
  return std::make_unique<SequenceNormalizer>(std::move(parts));
}

template <NormalForm kForm>
Made MakeUnicode(const JsonField&) {
  return std::make_unique<UnicodeNormalizer>(kForm);
}

template <typename T>
Made MakePlain(const JsonField&) {
  return std::make_unique<T>();
}

Made MakePrepend(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(std::string prefix, field.GetString("prepend"));
  return std::make_unique<PrependNormalizer>(std::move(prefix));
}

Made MakeReplace(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField pattern, field.Get("pattern"));
  PORTOLAN_ASSIGN_OR_RETURN(TextPattern compiled,
                            TextPattern::FromJson(pattern));
  PORTOLAN_ASSIGN_OR_RETURN(std::string content, field.GetString("content"));
  return std::make_unique<ReplaceNormalizer>(std::move(compiled),
                                             std::move(content));
}

Made MakeStrip(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const bool left,
                            field.GetBool("strip_left", false));
  PORTOLAN_ASSIGN_OR_RETURN(const bool right,
                            field.GetBool("strip_right", false));
  return std::make_unique<StripNormalizer>(left, right);
}

struct Kind {
  std::string_view type;
  Made (*make)(const JsonField& field);
};

constexpr Kind kKinds[] = {
    {"Sequence", MakeSequence},
    {"NFC", MakeUnicode<NormalForm::kNfc>},
    {"NFD", MakeUnicode<NormalForm::kNfd>},
    {"NFKC", MakeUnicode<NormalForm::kNfkc>},
    {"NFKD", MakeUnicode<NormalForm::kNfkd>},
    {"Lowercase", MakePlain<LowercaseNormalizer>},
    {"Prepend", MakePrepend},
    {"Replace", MakeReplace},
    {"Strip", MakeStrip},
    {"StripAccents", MakePlain<StripAccentsNormalizer>},
    {"ByteLevel", MakePlain<ByteLevelNormalizer>},
};

}  // namespace

absl::StatusOr<std::unique_ptr<Normalizer>> MakeNormalizer(
    const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const std::string type, field.GetString("type"));
  for (const Kind& kind : kKinds) {
    if (kind.type == type) return kind.make(field);
  }
  return field.Error(
      absl::StrCat("the normalizer ", Quoted(type), " is not supported"));
}

}  // namespace portolan
