#include "runtime/serving/text_stream.h"

#include <utility>

namespace portolan {

TextStream::TextStream(const Tokenizer& tokenizer,
                       std::vector<std::string> stops)
    : decoder_(tokenizer, /*skip_special=*/true), matcher_(std::move(stops)) {}

std::string TextStream::Push(int32_t token) {
  return matcher_.Push(decoder_.Push(token));
}

std::string TextStream::Finish() {
  std::string text = matcher_.Push(decoder_.Finish());
  if (!matcher_.stopped()) text += matcher_.Finish();
  return text;
}

}  // namespace portolan
