#include "runtime/model/tokenizer/sentencepiece_model.h"

#include <sentencepiece_processor.h>

namespace portolan {

SentencePieceModel::SentencePieceModel()
    : processor_(std::make_unique<sentencepiece::SentencePieceProcessor>()) {}

SentencePieceModel::~SentencePieceModel() = default;

std::string SentencePieceModel::Load(std::string_view contents) {
  const auto status = processor_->LoadFromSerializedProto(contents);
  return status.ok() ? "" : status.ToString();
}

std::string SentencePieceModel::Encode(std::string_view text,
                                       std::vector<int32_t>& ids) const {
  const auto status = processor_->Encode(text, &ids);
  return status.ok() ? "" : status.ToString();
}

int32_t SentencePieceModel::num_pieces() const {
  return processor_->GetPieceSize();
}

const std::string& SentencePieceModel::Piece(int32_t id) const {
  return processor_->IdToPiece(id);
}

SentencePieceModel::PieceKind SentencePieceModel::Kind(int32_t id) const {
  if (processor_->IsControl(id)) return PieceKind::kControl;
  if (processor_->IsUnknown(id)) return PieceKind::kUnknown;
  if (processor_->IsByte(id)) return PieceKind::kByte;
  return processor_->IsUnused(id) ? PieceKind::kUnused : PieceKind::kNormal;
}

int32_t SentencePieceModel::PieceToId(const std::string& piece) const {
  return processor_->PieceToId(piece);
}

int32_t SentencePieceModel::bos_id() const { return processor_->bos_id(); }

std::string SentencePieceModel::DecodePieces(
    const std::vector<std::string>& pieces) const {
  std::string text;
  const auto status = processor_->Decode(pieces, &text);
  return status.ok() ? text : "";
}

std::string SentencePieceModel::UnknownSurface() const {
  return DecodePieces({Piece(processor_->unk_id())});
}

// The flags lie in a message whose header is not installed, so the library is
// asked what it does.
SentencePieceModel::LeadingSpace SentencePieceModel::leading_space() const {
  const std::string text = DecodePieces({"\u2581", "\u2581x"});
  if (text == "x") return LeadingSpace::kAllDropped;
  return text == " x" ? LeadingSpace::kOneDropped : LeadingSpace::kKept;
}

}  // namespace portolan
