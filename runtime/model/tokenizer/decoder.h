#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/model/tokenizer/json_field.h"

namespace portolan {

// One stage on the way from tokens to text. Tokens come one after the other,
// each as any number of Text() calls with whole characters and one EndToken();
// Finish() ends the last one. A stage passes on what is certain at once and
// keeps what later input may change.
//
// Thread-compatible; belongs to one stream.
class DecodeStage {
 public:
  virtual ~DecodeStage() = default;

  virtual void Text(std::string_view chunk) = 0;
  virtual void EndToken() = 0;
  // No call follows. Passes on what was kept, then calls next->Finish().
  virtual void Finish() = 0;

  // `next` must outlive this stage.
  void set_next(DecodeStage& next) { next_ = &next; }

 protected:
  DecodeStage& next() { return *next_; }

 private:
  DecodeStage* next_ = nullptr;
};

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

// A stage that changes nothing, for an empty sequence of decoders.
std::unique_ptr<DecodeStage> MakePassingStage();

}  // namespace portolan
