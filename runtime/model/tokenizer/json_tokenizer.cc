#include "runtime/model/tokenizer/json_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/tokenizer/added_tokens.h"
#include "runtime/model/tokenizer/bpe.h"
#include "runtime/model/tokenizer/decoder.h"
#include "runtime/model/tokenizer/json_field.h"
#include "runtime/model/tokenizer/normalizer.h"
#include "runtime/model/tokenizer/post_processor.h"
#include "runtime/model/tokenizer/pre_tokenizer.h"
#include "runtime/model/tokenizer/unicode.h"

namespace portolan {
namespace {

// ICU and Oniguruma count bytes in int; normalizing may lengthen a text.
constexpr size_t kMaxTextBytes = size_t{1} << 30;

using Segments = std::vector<AddedTokens::Segment>;

class JsonTokenizer : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromField(
      const JsonField& root);

  absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text, bool add_special_tokens) const override;

  std::optional<int32_t> TokenToId(std::string_view token) const override {
    const std::optional<int32_t> id = added_.vocabulary().Find(token);
    return id.has_value() ? id : model_->vocabulary().Find(token);
  }

  std::optional<std::string> IdToToken(int32_t id) const override {
    const std::string* token = added_.vocabulary().Token(id);
    if (token == nullptr) token = model_->vocabulary().Token(id);
    if (token == nullptr) return std::nullopt;
    return *token;
  }

  int32_t vocab_size() const override {
    return std::max(added_.vocabulary().end_id(),
                    model_->vocabulary().end_id());
  }

  bool IsSpecial(int32_t id) const override { return added_.IsSpecial(id); }

 private:
  // Memory of one Encode() call.
  struct Scratch {
    Segments normalized_segments;
    NormalizedText normalized;
    PieceList pieces;
    Bpe::Scratch model;
  };

  bool SpellToken(int32_t id, std::string_view& token) const override {
    const std::string* spelling = added_.Spelling(id);
    if (spelling == nullptr) spelling = model_->vocabulary().Token(id);
    if (spelling == nullptr) return false;
    token = *spelling;
    return true;
  }

  std::vector<std::unique_ptr<DecodeStage>> NewStages() const override;

  absl::Status ReadModel(const JsonField& root);
  absl::Status ReadAroundModel(const JsonField& root);
  absl::Status EncodeRaw(std::string_view text, bool at_start, Scratch& scratch,
                         std::vector<int32_t>& ids) const;
  absl::Status EncodeNormalized(std::string_view text, bool at_start,
                                Scratch& scratch,
                                std::vector<int32_t>& ids) const;

  std::unique_ptr<Bpe> model_;
  std::unique_ptr<Normalizer> normalizer_;       // may be null
  std::unique_ptr<PreTokenizer> pre_tokenizer_;  // may be null
  std::unique_ptr<Decoder> decoder_;
  AddedTokens added_;
  SpecialTokenFrame frame_;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> JsonTokenizer::FromField(
    const JsonField& root) {
  auto tokenizer = std::make_unique<JsonTokenizer>();
  PORTOLAN_RETURN_IF_ERROR(tokenizer->ReadModel(root));
  PORTOLAN_RETURN_IF_ERROR(tokenizer->ReadAroundModel(root));
  return tokenizer;
}

absl::Status JsonTokenizer::ReadModel(const JsonField& root) {
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField model, root.Get("model"));
  // Files of the first version have no type; all of them are BPE here.
  PORTOLAN_ASSIGN_OR_RETURN(const std::string type,
                            model.GetString("type", "BPE"));
  if (type != "BPE") {
    return model.Error(absl::StrCat("the model ", Quoted(type),
                                    " is not supported, only \"BPE\" is"));
  }
  PORTOLAN_ASSIGN_OR_RETURN(model_, Bpe::FromJson(model));
  return absl::OkStatus();
}

absl::Status JsonTokenizer::ReadAroundModel(const JsonField& root) {
  if (const auto field = root.Find("normalizer")) {
    PORTOLAN_ASSIGN_OR_RETURN(normalizer_, MakeNormalizer(*field));
  }
  if (const auto field = root.Find("added_tokens")) {
    PORTOLAN_ASSIGN_OR_RETURN(
        added_,
        AddedTokens::FromJson(*field, model_->vocabulary(), normalizer_.get()));
  }
  if (const auto field = root.Find("pre_tokenizer")) {
    PORTOLAN_ASSIGN_OR_RETURN(pre_tokenizer_, MakePreTokenizer(*field));
  }
  if (const auto field = root.Find("post_processor")) {
    PORTOLAN_ASSIGN_OR_RETURN(frame_, ReadPostProcessor(*field, vocab_size()));
  }
  decoder_ = MakeSpaceJoiningDecoder();
  if (const auto field = root.Find("decoder")) {
    PORTOLAN_ASSIGN_OR_RETURN(decoder_, MakeDecoder(*field));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> JsonTokenizer::Encode(
    std::string_view text, bool add_special_tokens) const {
  if (text.size() >= kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", text.size(), " bytes; at most ",
                     kMaxTextBytes - 1, " can be encoded"));
  }
  if (const std::optional<size_t> offset = FindInvalidUtf8(text)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the text is no valid UTF-8: bad byte at offset ", *offset));
  }
  std::vector<int32_t> ids;
  if (add_special_tokens) ids = frame_.prefix;
  Segments segments;
  added_.FindInRaw(text, segments);
  Scratch scratch;
  for (const AddedTokens::Segment& segment : segments) {
    if (segment.id.has_value()) {
      ids.push_back(*segment.id);
      continue;
    }
    PORTOLAN_RETURN_IF_ERROR(
        EncodeRaw(text.substr(segment.begin, segment.end - segment.begin),
                  segment.begin == 0, scratch, ids));
  }
  if (add_special_tokens) {
    ids.insert(ids.end(), frame_.suffix.begin(), frame_.suffix.end());
  }
  return ids;
}

absl::Status JsonTokenizer::EncodeRaw(std::string_view text, bool at_start,
                                      Scratch& scratch,
                                      std::vector<int32_t>& ids) const {
  NormalizedText& normalized = scratch.normalized;
  normalized.text = text;
  normalized.at_start = at_start;
  if (normalizer_ != nullptr) {
    PORTOLAN_RETURN_IF_ERROR(normalizer_->Apply(normalized));
  }
  Segments& segments = scratch.normalized_segments;
  added_.FindInNormalized(normalized.text, segments);
  for (const AddedTokens::Segment& segment : segments) {
    if (segment.id.has_value()) {
      ids.push_back(*segment.id);
      continue;
    }
    PORTOLAN_RETURN_IF_ERROR(EncodeNormalized(
        std::string_view(normalized.text)
            .substr(segment.begin, segment.end - segment.begin),
        normalized.at_start && segment.begin == 0, scratch, ids));
  }
  return absl::OkStatus();
}

absl::Status JsonTokenizer::EncodeNormalized(std::string_view text,
                                             bool at_start, Scratch& scratch,
                                             std::vector<int32_t>& ids) const {
  PieceList& list = scratch.pieces;
  list.text = text;
  list.pieces.assign(1, {0, text.size(), at_start});
  if (pre_tokenizer_ != nullptr) {
    PORTOLAN_RETURN_IF_ERROR(pre_tokenizer_->Apply(list));
  }
  for (const PieceList::Piece& piece : list.pieces) {
    PORTOLAN_RETURN_IF_ERROR(
        model_->Encode(std::string_view(list.text).substr(
                           piece.begin, piece.end - piece.begin),
                       scratch.model, ids));
  }
  return absl::OkStatus();
}

std::vector<std::unique_ptr<DecodeStage>> JsonTokenizer::NewStages() const {
  std::vector<std::unique_ptr<DecodeStage>> stages;
  decoder_->AppendStages(stages);
  // A sequence of no decoders leaves the tokens as they are.
  if (stages.empty()) stages.push_back(MakePassingStage());
  return stages;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeJsonTokenizer(
    std::string_view text, const std::string& file) {
  PORTOLAN_ASSIGN_OR_RETURN(const nlohmann::json root,
                            ParseJsonText(text, file));
  return JsonTokenizer::FromField(JsonField(root, file));
}

}  // namespace portolan
