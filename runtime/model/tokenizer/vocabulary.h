#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace portolan {

// Ids are below this. It keeps vocab_size(), by which others size arrays,
// within bounds whatever a file says; the largest vocabulary of today has 2^18.
inline constexpr int32_t kMaxTokenIds = 1 << 24;

// Tokens and their ids, each unique. Ids may have gaps.
//
// Thread-compatible.
class Vocabulary {
 public:
  enum class AddResult { kAdded, kTokenExists, kIdExists };

  // `id` is in [0, kMaxTokenIds). Changes nothing unless kAdded.
  AddResult Add(std::string_view token, int32_t id);

  std::optional<int32_t> Find(std::string_view token) const;

  // The token of `id`, or nullptr. Valid as long as the vocabulary.
  const std::string* Token(int32_t id) const;

  void Reserve(size_t num_tokens);
  size_t size() const { return tokens_.size(); }
  // The largest id + 1; 0 when empty.
  int32_t end_id() const { return end_id_; }

 private:
  std::deque<std::string> tokens_;  // stable addresses for the views below
  absl::flat_hash_map<absl::string_view, int32_t> ids_;
  absl::flat_hash_map<int32_t, const std::string*> by_id_;
  int32_t end_id_ = 0;
};

}  // namespace portolan
