#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/mutex.h"
#include "runtime/model/tokenizer/json_field.h"
#include "runtime/model/tokenizer/vocabulary.h"

namespace portolan {

// Byte-pair encoding of one word at a time, as tokenizer.json's model "BPE"
// means it: the word's characters are joined pair by pair, always the pair of
// lowest rank, leftmost first (Sennrich et al. 2016, arXiv:1508.07909).
//
// A word of n characters takes O(n log n). Short words are remembered.
// Thread-safe.
class Bpe {
 public:
  // Memory that Encode() uses again from call to call; of one thread.
  class Scratch {
   private:
    friend class Bpe;
    struct Symbol {
      int32_t id;
      int32_t previous;  // index, -1 at the ends
      int32_t next;
      bool merged_away;
    };
    struct Candidate {
      uint32_t rank;
      int32_t left;  // index of the pair's first symbol
      int32_t merged_id;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    std::string affixed;
  };

  // Reads the object `model`.
  // Errors: kInvalidArgument naming file and path; also for a token, merge or
  // option that makes no sense, and for dropout, which is for training.
  static absl::StatusOr<std::unique_ptr<Bpe>> FromJson(const JsonField& model);

  // Appends the ids of `word`, not empty, valid UTF-8 of less than 2^31 bytes.
  // Errors: kInvalidArgument if the word needs the unknown token and the
  // vocabulary has none under that name.
  absl::Status Encode(std::string_view word, Scratch& scratch,
                      std::vector<int32_t>& out) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    uint32_t rank;
    int32_t merged_id;
  };
  // Words and their ids; emptied when full.
  struct CacheShard {
    Mutex mu;
    absl::flat_hash_map<std::string, std::vector<int32_t>> words
        ABSL_GUARDED_BY(mu);
  };

  Bpe() = default;

  absl::Status ReadOptions(const JsonField& model);
  absl::Status ReadVocabulary(const JsonField& vocab);
  absl::Status ReadMerges(const JsonField& merges);
  absl::Status AddMerge(const JsonField& field, std::string_view left,
                        std::string_view right, uint32_t rank);
  void FindByteTokens();

  CacheShard& ShardOf(std::string_view word) const;
  absl::Status EncodeUncached(std::string_view word, Scratch& scratch,
                              std::vector<int32_t>& out) const;
  absl::Status StartSymbols(std::string_view word, Scratch& scratch) const;
  std::optional<int32_t> FindStart(std::string_view character, bool is_first,
                                   bool is_last, Scratch& scratch) const;
  bool AppendByteTokens(std::string_view character, Scratch& scratch) const;
  void MergeAll(Scratch& scratch) const;
  void PushCandidate(int32_t left, Scratch& scratch) const;

  Vocabulary vocabulary_;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // key: left id << 32 | right
  std::string continuing_prefix_;
  std::string end_suffix_;
  std::string unk_token_;
  std::optional<int32_t> unk_id_;
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;
  bool byte_fallback_ = false;
  std::array<int32_t, 256> byte_tokens_{};  // "<0x00>"...; -1: none

  mutable std::array<CacheShard, 16> cache_;
};

}  // namespace portolan
