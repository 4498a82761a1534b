#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace portolan {

class SentencePieceProcessorApi;

// SentencePiece's processor, from a module that is loaded when the first model
// needs it (sentencepiece_module.h). Errors are texts here; empty means
// success.
//
// Thread-safe once loaded.
class SentencePieceModel {
 public:
  enum class PieceKind { kNormal, kControl, kUnknown, kByte, kUnused };

  // How decoding treats white space at the start of a text; as the model's
  // normalizer added it.
  enum class LeadingSpace { kKept, kOneDropped, kAllDropped };

  SentencePieceModel();
  ~SentencePieceModel();

  // Reads the contents of a tokenizer.model; before anything else. Returns the
  // error, also of a module that is not there.
  std::string Load(std::string_view contents);

  // Replaces `ids`. Returns the error.
  std::string Encode(std::string_view text, std::vector<int32_t>& ids) const;

  int32_t num_pieces() const;
  // id is in [0, num_pieces()).
  const std::string& Piece(int32_t id) const;
  PieceKind Kind(int32_t id) const;
  // The id of `piece`; that of the unknown piece if it is none.
  int32_t PieceToId(const std::string& piece) const;
  // -1 if the model has none.
  int32_t bos_id() const;
  // What stands for the unknown piece in decoded text.
  std::string UnknownSurface() const;
  LeadingSpace leading_space() const;

 private:
  std::string DecodePieces(const std::vector<std::string>& pieces) const;

  std::unique_ptr<SentencePieceProcessorApi> processor_;
};

}  // namespace portolan
