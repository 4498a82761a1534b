#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/model/tokenizer/tokenizer.h"

namespace portolan {

// The tokenizer of `contents`, a SentencePiece tokenizer.model. Its special
// tokens are the control pieces and the unknown piece; special tokens asked for
// in Encode() are the beginning-of-text piece in front, if the model has one.
// Errors: as Tokenizer::Load().
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(
    std::string_view contents, const std::string& file);

}  // namespace portolan
