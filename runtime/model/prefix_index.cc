#include "runtime/model/prefix_index.h"

#include <algorithm>
#include <bit>

#include "runtime/base/check.h"
#include "runtime/kernels/kv_layout.h"

namespace portolan {

PrefixIndex::PrefixIndex(int32_t num_pages)
    : entries_(static_cast<size_t>(num_pages)),
      tokens_(static_cast<size_t>(num_pages) * kPageTokens),
      buckets_(std::bit_ceil(2 * static_cast<size_t>(num_pages)), kNone) {}

int32_t PrefixIndex::Find(int32_t before,
                          std::span<const int32_t> tokens) const {
  int32_t page = buckets_[BucketOf(before, tokens)];
  while (page != kNone) {
    const Entry& entry = entries_[static_cast<size_t>(page)];
    if (entry.before == before && std::ranges::equal(TokensOf(page), tokens)) {
      return page;
    }
    page = entry.next;
  }
  return kNone;
}

void PrefixIndex::Insert(int32_t page, int32_t before,
                         std::span<const int32_t> tokens) {
  Entry& entry = entries_[static_cast<size_t>(page)];
  PORTOLAN_CHECK(!entry.known && tokens.size() == kPageTokens);
  std::ranges::copy(tokens, tokens_.begin() + page * kPageTokens);
  int32_t& bucket = buckets_[BucketOf(before, tokens)];
  entry = {.known = true, .before = before, .next = bucket};
  bucket = page;
}

void PrefixIndex::Erase(int32_t page) {
  Entry& entry = entries_[static_cast<size_t>(page)];
  PORTOLAN_CHECK(entry.known);
  int32_t* link = &buckets_[BucketOf(entry.before, TokensOf(page))];
  while (*link != page) link = &entries_[static_cast<size_t>(*link)].next;
  *link = entry.next;
  entry = {};
}

size_t PrefixIndex::BucketOf(int32_t before,
                             std::span<const int32_t> tokens) const {
  constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15u;
  uint64_t hash = static_cast<uint32_t>(before) + kMultiplier;
  for (const int32_t token : tokens) {
    hash = (std::rotl(hash, 23) ^ static_cast<uint32_t>(token)) * kMultiplier;
  }
  return static_cast<size_t>(hash >> 32) & (buckets_.size() - 1);
}

std::span<const int32_t> PrefixIndex::TokensOf(int32_t page) const {
  return std::span(tokens_).subspan(static_cast<size_t>(page) * kPageTokens,
                                    kPageTokens);
}

}  // namespace portolan
