#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/model/tokenizer/json_field.h"

namespace portolan {

// A part of the input on its way through the normalizers.
struct NormalizedText {
  std::string text;
  // Whether the first character still stands for the first one of the input;
  // Metaspace with prepend_scheme "first" asks.
  bool at_start;
};

// A component of tokenizer.json's "normalizer".
//
// Thread-safe.
class Normalizer {
 public:
  virtual ~Normalizer() = default;

  // Errors: as Regex::FindSpans().
  virtual absl::Status Apply(NormalizedText& text) const = 0;
};

// Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip,
// StripAccents, ByteLevel.
// Errors: kInvalidArgument naming file and path, also for any other type.
absl::StatusOr<std::unique_ptr<Normalizer>> MakeNormalizer(
    const JsonField& field);

}  // namespace portolan
