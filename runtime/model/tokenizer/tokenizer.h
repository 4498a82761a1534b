#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace portolan {

class DecodeStage;

// Text to token ids and back, as the model's own files say.
//
// tokenizer.json (Hugging Face): what it configures is what happens; its
// sections "truncation" and "padding" are not applied, for they belong to
// batches in training. tokenizer.model (SentencePiece) through its library.
//
// Thread-safe.
class Tokenizer {
 public:
  // Reads tokenizer.json, or else tokenizer.model, of the directory `dir`.
  // Errors: kNotFound if there is neither; kInvalidArgument naming the file
  // and the path in it, also for a component that is not supported.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(
      const std::string& dir);

  // Reads the text of a tokenizer.json; `file` is its name for errors.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(
      std::string_view text, const std::string& file);

  virtual ~Tokenizer() = default;

  // The ids of `text`. `add_special_tokens` asks for the marks that the file
  // puts around a sequence (of a tokenizer.model: its beginning-of-text token,
  // where it has one). Special tokens spelled out in `text` become their ids
  // either way, but for a tokenizer.model, which reads them as plain text.
  // Errors: kInvalidArgument if `text` is no valid UTF-8, with the offset, or
  // has 2^30 bytes or more; kResourceExhausted if a regular expression
  // of the file takes too long.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text, bool add_special_tokens) const = 0;

  // The text of `ids`, always valid UTF-8. Ids outside the vocabulary stand
  // for nothing, and special ones neither if `skip_special`.
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const;

  virtual std::optional<int32_t> TokenToId(std::string_view token) const = 0;
  // The token as the file spells it, or nullopt.
  virtual std::optional<std::string> IdToToken(int32_t id) const = 0;
  // The largest id + 1.
  virtual int32_t vocab_size() const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;

 private:
  friend class StreamDecoder;

  // What the stages are given for `id`; false if it is not in the vocabulary.
  virtual bool SpellToken(int32_t id, std::string_view& token) const = 0;

  // The stages from tokens to text, at least one, not linked yet.
  virtual std::vector<std::unique_ptr<DecodeStage>> NewStages() const = 0;
};

// Decodes a stream token by token. What Push() returned so far and Finish()
// returns together is what Decode() says of all ids.
//
// Text comes out as soon as no later token can change it, in whole characters.
// What decoder.h keeps back comes later, or with Finish(); of byte tokens
// (byte fallback) that is the whole run.
//
// Thread-compatible. `tokenizer` must outlive it.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special);
  ~StreamDecoder();
  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;

  // The text that is certain now and was not returned before. The view is
  // valid until the next call.
  std::string_view Push(int32_t id);

  // The rest. Only destruction and assignment may follow.
  std::string_view Finish();

 private:
  class Sink;

  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::unique_ptr<Sink> sink_;
  std::vector<std::unique_ptr<DecodeStage>> stages_;
};

}  // namespace portolan
