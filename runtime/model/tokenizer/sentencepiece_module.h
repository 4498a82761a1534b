#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace portolan {

// What the module portolan_sentencepiece.so gives: SentencePiece's processor.
//
// The library stands in a module of its own, loaded when a model needs it,
// because it carries an old protobuf whose symbols must not meet those of the
// protobuf that gRPC uses: one of the two would call into the other.
class SentencePieceProcessorApi {
 public:
  virtual ~SentencePieceProcessorApi() = default;

  // These three return the error; empty means success.
  virtual std::string Load(std::string_view contents) = 0;
  virtual std::string Encode(std::string_view text,
                             std::vector<int32_t>& ids) const = 0;
  virtual std::string Decode(const std::vector<std::string>& pieces,
                             std::string& text) const = 0;

  virtual int32_t num_pieces() const = 0;
  virtual const std::string& Piece(int32_t id) const = 0;
  virtual int32_t PieceToId(const std::string& piece) const = 0;
  virtual bool IsControl(int32_t id) const = 0;
  virtual bool IsUnknown(int32_t id) const = 0;
  virtual bool IsByte(int32_t id) const = 0;
  virtual bool IsUnused(int32_t id) const = 0;
  virtual int32_t bos_id() const = 0;
  virtual int32_t unk_id() const = 0;
};

// The module's only symbol makes one, which the caller owns.
inline constexpr char kNewSentencePieceProcessor[] =
    "PortolanNewSentencePieceProcessor";
using NewSentencePieceProcessor = SentencePieceProcessorApi*();

}  // namespace portolan
