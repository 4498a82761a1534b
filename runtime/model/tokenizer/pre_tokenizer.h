#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/model/tokenizer/json_field.h"

namespace portolan {

// A text in pieces, which the model encodes one by one. The pieces are ranges
// of `text` in order, never empty; what lies between them is dropped.
struct PieceList {
  struct Piece {
    size_t begin;
    size_t end;
    // As NormalizedText::at_start.
    bool at_start;
  };

  std::string text;
  std::vector<Piece> pieces;
};

// A component of tokenizer.json's "pre_tokenizer": cuts pieces into smaller
// ones, and may rewrite them.
//
// Thread-safe.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;

  // Errors: as Regex::FindSpans().
  virtual absl::Status Apply(PieceList& list) const = 0;
};

// Sequence, ByteLevel, Split, Whitespace, WhitespaceSplit, Digits,
// Punctuation, Metaspace.
// Errors: kInvalidArgument naming file and path, also for any other type.
absl::StatusOr<std::unique_ptr<PreTokenizer>> MakePreTokenizer(
    const JsonField& field);

}  // namespace portolan
