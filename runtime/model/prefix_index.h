#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace portolan {

// Which KV page holds which tokens: a full page is known by the tokens in it
// and by the page before it, so equal chains of pages mean equal beginnings of
// sequences. Tokens are compared, not only their hashes.
//
// Pure; allocates only in the constructor. Thread-compatible.
class PrefixIndex {
 public:
  static constexpr int32_t kNone = -1;  // no page; the one before the first

  explicit PrefixIndex(int32_t num_pages);

  // The page that holds `tokens` (kPageTokens of them) behind page `before`,
  // or kNone.
  int32_t Find(int32_t before, std::span<const int32_t> tokens) const;

  // Requires that Find() knows none and that `page` is not in the index.
  void Insert(int32_t page, int32_t before, std::span<const int32_t> tokens);

  // Requires that `page` is in the index and no page in it stands behind it.
  void Erase(int32_t page);

  bool Contains(int32_t page) const {
    return entries_[static_cast<size_t>(page)].known;
  }

 private:
  struct Entry {
    bool known = false;
    int32_t before = kNone;
    int32_t next = kNone;  // in the bucket
  };

  size_t BucketOf(int32_t before, std::span<const int32_t> tokens) const;
  std::span<const int32_t> TokensOf(int32_t page) const;

  std::vector<Entry> entries_;    // [num_pages]
  std::vector<int32_t> tokens_;   // [num_pages, kPageTokens]
  std::vector<int32_t> buckets_;  // first page; a power of two
};

}  // namespace portolan
