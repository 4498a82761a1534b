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
// asked what it does to two pieces of nothing but a space. Without such a piece
// no text shows the difference between one dropped and all.
SentencePieceModel::LeadingSpace SentencePieceModel::leading_space() const {
  const std::string space = "\u2581";
  const int32_t space_id = PieceToId(space);
  if (Kind(space_id) == PieceKind::kNormal) {
    const std::string text = DecodePieces({space, space});
    if (text.empty()) return LeadingSpace::kAllDropped;
    return text == " " ? LeadingSpace::kOneDropped : LeadingSpace::kKept;
  }
  for (int32_t id = 0; id < num_pieces(); ++id) {
    if (Kind(id) != PieceKind::kNormal || !Piece(id).starts_with(space)) {
      continue;
    }
    return DecodePieces({Piece(id)}).starts_with(' ')
               ? LeadingSpace::kKept
               : LeadingSpace::kOneDropped;
  }
  return LeadingSpace::kKept;
}

}  // namespace portolan
