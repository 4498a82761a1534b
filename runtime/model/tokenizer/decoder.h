#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/model/tokenizer/decode_stages.h"
#include "runtime/model/tokenizer/json_field.h"

namespace portolan {

// A component of tokenizer.json's "decoder": makes the stages of a stream.
//
// Thread-safe.
class Decoder {
 public:
  virtual ~Decoder() = default;

  // Appends the stages of a new stream. They must not outlive the decoder.
  virtual void AppendStages(
      std::vector<std::unique_ptr<DecodeStage>>& stages) const = 0;
};

// Sequence, ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip.
//
// Text that is kept back: ByteLevel an unfinished character; ByteFallback the
// whole run of byte tokens, for one broken byte in it makes all of them U+FFFD;
// Strip the last characters that the end may strip; Replace behind Fuse, if
// its pattern is a regular expression, everything. A regular expression that
// backtracks without bound leaves the token as it is.
// Errors: kInvalidArgument naming file and path, also for any other type.
absl::StatusOr<std::unique_ptr<Decoder>> MakeDecoder(const JsonField& field);

// Without a decoder tokens are joined by spaces.
std::unique_ptr<Decoder> MakeSpaceJoiningDecoder();

}  // namespace portolan
