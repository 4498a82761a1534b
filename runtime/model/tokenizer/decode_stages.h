#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "runtime/model/tokenizer/regex.h"

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

// All tokens together are one byte string, which becomes one token of valid
// UTF-8. A token with characters outside the byte alphabet stands for its own
// bytes.
std::unique_ptr<DecodeStage> MakeByteLevelStage();

// Turns the replacement character into a space; in the first token drops it,
// if encoding has put it there.
std::unique_ptr<DecodeStage> MakeMetaspaceStage(char32_t replacement,
                                                bool drops_first);

// Replaces the matches of a pattern within each token: those of a string as the
// text comes in, those of a regular expression at the token's end. Both
// arguments must outlive the stage.
std::unique_ptr<DecodeStage> MakeReplaceStage(const TextPattern& from,
                                              const std::string& to);

// Joins runs of tokens "<0x..>" to the text that their bytes spell.
std::unique_ptr<DecodeStage> MakeByteFallbackStage();

// Makes all tokens one.
std::unique_ptr<DecodeStage> MakeFuseStage();

// Removes up to `start` and `stop` times a character from the ends of each
// token.
std::unique_ptr<DecodeStage> MakeStripStage(char32_t content, int64_t start,
                                            int64_t stop);

// Puts a space between tokens.
std::unique_ptr<DecodeStage> MakeSpaceJoiningStage();

// A stage that changes nothing, for an empty sequence of decoders.
std::unique_ptr<DecodeStage> MakePassingStage();

}  // namespace portolan
