#include "runtime/model/tokenizer/sentencepiece_tokenizer.h"

#include <cstdint>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/model/tokenizer/decode_stages.h"
#include "runtime/model/tokenizer/sentencepiece_model.h"
#include "runtime/model/tokenizer/unicode.h"

namespace portolan {
namespace {

constexpr std::string_view kSpace = "\u2581";
constexpr std::string_view kByteStart = "<0x";

using PieceKind = SentencePieceModel::PieceKind;
using LeadingSpace = SentencePieceModel::LeadingSpace;

// Decodes piece by piece as SentencePieceProcessor::Decode() does at once; a
// broken byte becomes one U+FFFD.
class PieceStage : public DecodeStage {
 public:
  PieceStage(const SentencePieceModel& model, LeadingSpace leading_space)
      : model_(model),
        unknown_surface_(model.UnknownSurface()),
        leading_space_(leading_space),
        at_start_(leading_space != LeadingSpace::kKept) {}

  void Text(std::string_view chunk) override { piece_ += chunk; }

  void EndToken() override {
    const int32_t id = model_.PieceToId(piece_);
    text_.clear();
    if (model_.Kind(id) == PieceKind::kByte) {
      PushByte(id);
    } else {
      FlushBytes();
      if (!text_.empty()) at_start_ = false;
      AppendPiece(model_.Kind(id));
    }
    piece_.clear();
    if (!text_.empty()) next().Text(text_);
    if (!text_.empty()) at_start_ = false;
    next().EndToken();
  }

  void Finish() override {
    text_.clear();
    FlushBytes();
    if (!text_.empty()) next().Text(text_);
    next().Finish();
  }

 private:
  // The library has made sure that a byte's name is "<0x41>" or the like.
  void PushByte(int32_t id) {
    const char* hex = model_.Piece(id).c_str() + kByteStart.size();
    bytes_ += static_cast<char>(std::strtol(hex, nullptr, 16));
    DecodeBytes(/*all=*/false);
  }

  void FlushBytes() { DecodeBytes(/*all=*/true); }

  // Whole characters, and bytes that can begin none one by one.
  void DecodeBytes(bool all) {
    while (!bytes_.empty()) {
      const size_t length = LengthOfFirst(bytes_);
      if (length == 0 && !all) return;
      if (length == 0 || FindInvalidUtf8(bytes_.substr(0, length))) {
        text_ += "\uFFFD";
        bytes_.erase(0, 1);
      } else {
        text_.append(bytes_, 0, length);
        bytes_.erase(0, length);
      }
    }
  }

  // Bytes of the character in front; 1 if they cannot become one, 0 if more
  // are needed to tell.
  static size_t LengthOfFirst(const std::string& bytes) {
    for (size_t length = 1; length <= bytes.size() && length <= 4; ++length) {
      if (!FindInvalidUtf8(std::string_view(bytes).substr(0, length))) {
        return length;
      }
    }
    Utf8Repair repair;
    std::string decided;
    for (const char byte : bytes) {
      repair.Push(static_cast<uint8_t>(byte), decided);
    }
    return decided.empty() ? 0 : 1;
  }

  void AppendPiece(PieceKind kind) {
    if (kind == PieceKind::kControl) return;
    if (kind == PieceKind::kUnknown) {
      text_ += unknown_surface_;
      return;
    }
    std::string_view rest = piece_;
    if (at_start_ && rest.starts_with(kSpace)) {
      rest.remove_prefix(kSpace.size());
      if (leading_space_ == LeadingSpace::kOneDropped) at_start_ = false;
    }
    while (!rest.empty()) {
      const bool is_space = rest.starts_with(kSpace);
      const size_t num_bytes = CharAt(rest, 0).num_bytes;
      text_ += is_space ? std::string_view(" ") : rest.substr(0, num_bytes);
      rest.remove_prefix(num_bytes);
    }
  }

  const SentencePieceModel& model_;
  std::string unknown_surface_;
  LeadingSpace leading_space_;
  bool at_start_;
  std::string piece_;
  std::string bytes_;
  std::string text_;
};

class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(std::unique_ptr<SentencePieceModel> model)
      : model_(std::move(model)), leading_space_(model_->leading_space()) {}

  absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text, bool add_special_tokens) const override {
    if (const std::optional<size_t> offset = FindInvalidUtf8(text)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the text is no valid UTF-8: bad byte at offset ", *offset));
    }
    std::vector<int32_t> ids;
    const std::string error = model_->Encode(text, ids);
    if (!error.empty()) return absl::InvalidArgumentError(error);
    if (add_special_tokens && model_->bos_id() >= 0) {
      ids.insert(ids.begin(), model_->bos_id());
    }
    return ids;
  }

  std::optional<int32_t> TokenToId(std::string_view token) const override {
    const std::string piece(token);
    const int32_t id = model_->PieceToId(piece);
    if (id < 0 || id >= vocab_size() || model_->Piece(id) != piece) {
      return std::nullopt;
    }
    return id;
  }

  std::optional<std::string> IdToToken(int32_t id) const override {
    if (id < 0 || id >= vocab_size()) return std::nullopt;
    return model_->Piece(id);
  }

  int32_t vocab_size() const override { return model_->num_pieces(); }

  bool IsSpecial(int32_t id) const override {
    if (id < 0 || id >= vocab_size()) return false;
    const PieceKind kind = model_->Kind(id);
    return kind == PieceKind::kControl || kind == PieceKind::kUnknown;
  }

 private:
  bool SpellToken(int32_t id, std::string_view& token) const override {
    if (id < 0 || id >= vocab_size()) return false;
    token = model_->Piece(id);
    return true;
  }

  std::vector<std::unique_ptr<DecodeStage>> NewStages() const override {
    std::vector<std::unique_ptr<DecodeStage>> stages;
    stages.push_back(std::make_unique<PieceStage>(*model_, leading_space_));
    return stages;
  }

  std::unique_ptr<SentencePieceModel> model_;
  LeadingSpace leading_space_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(
    std::string_view contents, const std::string& file) {
  auto model = std::make_unique<SentencePieceModel>();
  const std::string error = model->Load(contents);
  if (!error.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": no SentencePiece model: ", error));
  }
  return std::make_unique<SentencePieceTokenizer>(std::move(model));
}

}  // namespace portolan
