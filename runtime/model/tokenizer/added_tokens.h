#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "runtime/model/tokenizer/json_field.h"
#include "runtime/model/tokenizer/normalizer.h"
#include "runtime/model/tokenizer/vocabulary.h"

namespace portolan {

// Strings, of which it finds the longest at a place in a text.
//
// Thread-compatible.
class StringTrie {
 public:
  struct Match {
    size_t index;
    size_t num_bytes;
  };

  StringTrie() { root_.fill(0); }

  // Of equal strings the first one counts. `text` is not empty.
  void Add(std::string_view text, size_t index);

  // The longest string that stands at `at` in `text`.
  std::optional<Match> Longest(std::string_view text, size_t at) const;

 private:
  uint32_t Child(uint32_t node, uint8_t byte) const;

  std::array<uint32_t, 256> root_;  // node behind the first byte, or 0
  absl::flat_hash_map<uint64_t, uint32_t> children_;  // node << 8 | byte
  std::vector<int64_t> index_of_node_ = {-1};         // node 0: the root
};

// tokenizer.json's "added_tokens": tokens that are found in the text before
// the model sees it, some before the normalizer and some behind it.
//
// Thread-safe once built.
class AddedTokens {
 public:
  // A part of a text: an added token, or what is left for the model.
  struct Segment {
    size_t begin;
    size_t end;
    std::optional<int32_t> id;
  };

  // Reads the array `field`. A token that `model` has too must have its id.
  // `normalizer` may be null.
  // Errors: kInvalidArgument naming file and path.
  static absl::StatusOr<AddedTokens> FromJson(const JsonField& field,
                                              const Vocabulary& model,
                                              const Normalizer* normalizer);

  // Cuts `text` around the tokens that are looked for in the raw text, or in
  // normalized text. The leftmost match wins, then the longest. Replaces
  // `segments`; white space that a token strips belongs to its segment.
  void FindInRaw(std::string_view text, std::vector<Segment>& segments) const {
    Find(raw_, text, segments);
  }
  void FindInNormalized(std::string_view text,
                        std::vector<Segment>& segments) const {
    Find(normalized_, text, segments);
  }

  bool IsSpecial(int32_t id) const;
  // What the decoder is given for `id`: the text in which the token is looked
  // for, normalized if that is. Null if it is no added token.
  const std::string* Spelling(int32_t id) const;
  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Token {
    std::string content;
    std::string spelling;
    int32_t id;
    bool single_word;
    bool lstrip;
    bool rstrip;
    bool normalized;
    bool special;
  };

  static absl::StatusOr<Token> ReadToken(const JsonField& field);
  absl::Status Add(const JsonField& field, const Vocabulary& model);
  absl::Status BuildTries(const Normalizer* normalizer);
  void Find(const StringTrie& trie, std::string_view text,
            std::vector<Segment>& segments) const;

  std::vector<Token> tokens_;
  absl::flat_hash_map<int32_t, size_t> index_of_id_;
  Vocabulary vocabulary_;
  StringTrie raw_;
  StringTrie normalized_;
};

}  // namespace portolan
