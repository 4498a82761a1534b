#include "runtime/model/tokenizer/sentencepiece_module.h"

#include <sentencepiece_processor.h>

namespace portolan {
namespace {

class Processor final : public SentencePieceProcessorApi {
 public:
  std::string Load(std::string_view contents) override {
    return Text(processor_.LoadFromSerializedProto(contents));
  }
  std::string Encode(std::string_view text,
                     std::vector<int32_t>& ids) const override {
    return Text(processor_.Encode(text, &ids));
  }
  std::string Decode(const std::vector<std::string>& pieces,
                     std::string& text) const override {
    return Text(processor_.Decode(pieces, &text));
  }
  int32_t num_pieces() const override { return processor_.GetPieceSize(); }
  const std::string& Piece(int32_t id) const override {
    return processor_.IdToPiece(id);
  }
  int32_t PieceToId(const std::string& piece) const override {
    return processor_.PieceToId(piece);
  }
  bool IsControl(int32_t id) const override { return processor_.IsControl(id); }
  bool IsUnknown(int32_t id) const override { return processor_.IsUnknown(id); }
  bool IsByte(int32_t id) const override { return processor_.IsByte(id); }
  bool IsUnused(int32_t id) const override { return processor_.IsUnused(id); }
  int32_t bos_id() const override { return processor_.bos_id(); }
  int32_t unk_id() const override { return processor_.unk_id(); }

 private:
  static std::string Text(const sentencepiece::util::Status& status) {
    return status.ok() ? "" : status.ToString();
  }

  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace
}  // namespace portolan

extern "C" portolan::SentencePieceProcessorApi*
PortolanNewSentencePieceProcessor() {
  return new portolan::Processor;
}
