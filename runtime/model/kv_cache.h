#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/aligned_buffer.h"

namespace portolan {

// Pages of keys and values, each for kPageTokens positions of one sequence
// in all layers. A sequence holds a list of pages, in the order of their
// positions; pages are fixed in number and given back whole.
//
// Thread-compatible.
class KvCache {
 public:
  struct Options {
    int32_t num_layers = 0;
    int64_t page_bytes = 0;  // of one layer, KvLayout::PageBytes()
    int32_t num_pages = 0;
  };

  // Errors: kResourceExhausted if the memory is not there.
  static absl::StatusOr<KvCache> Create(const Options& options);

  KvCache(KvCache&&) = default;
  KvCache& operator=(KvCache&&) = default;

  int32_t num_pages() const { return options_.num_pages; }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int64_t bytes() const { return static_cast<int64_t>(memory_.size()); }

  // Extends `pages` so that it covers `num_tokens` positions; false, and
  // nothing taken, if too few pages are free.
  bool Grow(std::vector<int32_t>& pages, int64_t num_tokens);

  // Gives all pages back and empties the list.
  void Release(std::vector<int32_t>& pages);

  // Where `page` keeps layer `layer`. Valid as long as the cache.
  std::byte* Page(int32_t page, int32_t layer) const {
    return memory_.data() +
           (int64_t{page} * options_.num_layers + layer) * options_.page_bytes;
  }

 private:
  KvCache(const Options& options, AlignedBuffer memory);

  Options options_;
  AlignedBuffer memory_;
  std::vector<int32_t> free_;
};

// Pages that `num_tokens` positions take.
int32_t KvPagesFor(int64_t num_tokens);

}  // namespace portolan
