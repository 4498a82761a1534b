#include "runtime/model/tokenizer/decoder.h"

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/tokenizer/regex.h"
#include "runtime/model/tokenizer/unicode.h"

namespace portolan {
namespace {

using Stages = std::vector<std::unique_ptr<DecodeStage>>;

// A decoder of one stage.
class StageDecoder : public Decoder {
 public:
  using Make = std::function<std::unique_ptr<DecodeStage>()>;

  explicit StageDecoder(Make make) : make_(std::move(make)) {}

  void AppendStages(Stages& stages) const override {
    stages.push_back(make_());
  }

 private:
  Make make_;
};

class ReplaceDecoder : public Decoder {
 public:
  ReplaceDecoder(TextPattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}

  void AppendStages(Stages& stages) const override {
    stages.push_back(MakeReplaceStage(pattern_, content_));
  }

 private:
  TextPattern pattern_;
  std::string content_;
};

class SequenceDecoder : public Decoder {
 public:
  explicit SequenceDecoder(std::vector<std::unique_ptr<Decoder>> parts)
      : parts_(std::move(parts)) {}

  void AppendStages(Stages& stages) const override {
    for (const auto& part : parts_) part->AppendStages(stages);
  }

 private:
  std::vector<std::unique_ptr<Decoder>> parts_;
};

using Made = absl::StatusOr<std::unique_ptr<Decoder>>;

Made MakeSequence(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField list, field.Get("decoders"));
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<JsonField> elements,
                            list.Elements());
  std::vector<std::unique_ptr<Decoder>> parts;
  for (const JsonField& element : elements) {
    PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<Decoder> part,
                              MakeDecoder(element));
    parts.push_back(std::move(part));
  }
  return std::make_unique<SequenceDecoder>(std::move(parts));
}

template <std::unique_ptr<DecodeStage> (*make)()>
Made MakePlain(const JsonField&) {
  return std::make_unique<StageDecoder>(make);
}

Made MakeMetaspace(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const char32_t replacement,
                            field.GetChar("replacement"));
  PORTOLAN_ASSIGN_OR_RETURN(const bool add_prefix_space,
                            field.GetBool("add_prefix_space", true));
  PORTOLAN_ASSIGN_OR_RETURN(
      const std::string scheme,
      field.GetString("prepend_scheme", add_prefix_space ? "always" : "never"));
  return std::make_unique<StageDecoder>(
      [replacement, drops_first = scheme != "never"] {
        return MakeMetaspaceStage(replacement, drops_first);
      });
}

Made MakeReplace(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField pattern, field.Get("pattern"));
  PORTOLAN_ASSIGN_OR_RETURN(TextPattern compiled,
                            TextPattern::FromJson(pattern));
  PORTOLAN_ASSIGN_OR_RETURN(std::string content, field.GetString("content"));
  return std::make_unique<ReplaceDecoder>(std::move(compiled),
                                          std::move(content));
}

Made MakeStrip(const JsonField& field) {
  constexpr int64_t kLimit = 1 << 20;
  PORTOLAN_ASSIGN_OR_RETURN(const char32_t content, field.GetChar("content"));
  PORTOLAN_ASSIGN_OR_RETURN(const int64_t start, field.GetInt("start", kLimit));
  PORTOLAN_ASSIGN_OR_RETURN(const int64_t stop, field.GetInt("stop", kLimit));
  return std::make_unique<StageDecoder>(
      [=] { return MakeStripStage(content, start, stop); });
}

struct Kind {
  std::string_view type;
  Made (*make)(const JsonField& field);
};

constexpr Kind kKinds[] = {
    {"Sequence", MakeSequence},
    {"ByteLevel", MakePlain<MakeByteLevelStage>},
    {"Metaspace", MakeMetaspace},
    {"Replace", MakeReplace},
    {"ByteFallback", MakePlain<MakeByteFallbackStage>},
    {"Fuse", MakePlain<MakeFuseStage>},
    {"Strip", MakeStrip},
};

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> MakeDecoder(const JsonField& field) {
  PORTOLAN_ASSIGN_OR_RETURN(const std::string type, field.GetString("type"));
  for (const Kind& kind : kKinds) {
    if (kind.type == type) return kind.make(field);
  }
  return field.Error(
      absl::StrCat("the decoder ", Quoted(type), " is not supported"));
}

std::unique_ptr<Decoder> MakeSpaceJoiningDecoder() {
  return std::make_unique<StageDecoder>(MakeSpaceJoiningStage);
}

}  // namespace portolan
