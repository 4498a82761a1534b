#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/model/prefix_index.h"

namespace portolan {

// Pages of keys and values, each for kPageTokens positions of one sequence
// in all layers. A sequence holds a list of pages, in the order of their
// positions; pages are fixed in number.
//
// Sequences that begin with the same tokens may share pages: a full page that
// was published is found again by its tokens and those before it, while a
// sequence holds it and afterwards until its memory is needed (the one unused
// for longest goes first). Keys and values depend on the tokens up to their
// position alone, so a shared page has the very bits of a computed one.
//
// Thread-compatible.
class KvCache {
 public:
  struct Options {
    int32_t num_layers = 0;
    int64_t page_bytes = 0;  // of one layer, KvLayout::PageBytes()
    int32_t num_pages = 0;
    std::vector<int> numa_nodes = {};  // PlaceMemory()
  };

  // Errors: kResourceExhausted if the memory is not there.
  static absl::StatusOr<KvCache> Create(const Options& options);

  KvCache(KvCache&&) = default;
  KvCache& operator=(KvCache&&) = default;

  int32_t num_pages() const { return options_.num_pages; }
  // Pages that no sequence holds.
  int32_t num_free() const {
    return static_cast<int32_t>(free_.size()) + num_unheld_;
  }
  int64_t bytes() const { return static_cast<int64_t>(memory_.size()); }

  // Extends `pages` so that it covers `num_tokens` positions; false, and
  // nothing taken, if too few pages are free.
  bool Grow(std::vector<int32_t>& pages, int64_t num_tokens);

  // Gives all pages back and empties the list; returns how many of them no
  // sequence holds now.
  int32_t Release(std::vector<int32_t>& pages);

  // Fills the empty list with published pages that hold the beginning of
  // `tokens`, as many as there are, but leaves one token at least to compute.
  // Returns the number of positions that they cover.
  int64_t Adopt(std::vector<int32_t>& pages, std::span<const int32_t> tokens);

  // Makes the full pages of `computed`, the tokens of a sequence whose keys and
  // values are there, known to others. The first `num_published` pages are
  // known already; returns their new number. A page whose like is known gives
  // way to that one in `pages`.
  int32_t Publish(std::vector<int32_t>& pages, int32_t num_published,
                  std::span<const int32_t> computed);

  // Where `page` keeps layer `layer`. Valid as long as the cache.
  std::byte* Page(int32_t page, int32_t layer) const {
    return memory_.data() +
           (int64_t{page} * options_.num_layers + layer) * options_.page_bytes;
  }

 private:
  // A published page that no sequence holds has a place among the unheld,
  // ordered by the time of release.
  struct PageState {
    int32_t holders = 0;
    int32_t older = PrefixIndex::kNone;
    int32_t newer = PrefixIndex::kNone;
  };

  KvCache(const Options& options, AlignedBuffer memory);

  PageState& State(int32_t page) { return states_[static_cast<size_t>(page)]; }
  int32_t TakeFree();
  void Hold(int32_t page);
  bool LetGo(int32_t page);
  void AppendUnheld(int32_t page);
  void RemoveUnheld(int32_t page);

  Options options_;
  AlignedBuffer memory_;
  std::vector<int32_t> free_;  // neither held nor published
  PrefixIndex index_;
  std::vector<PageState> states_;  // [num_pages]
  int32_t oldest_unheld_ = PrefixIndex::kNone;
  int32_t newest_unheld_ = PrefixIndex::kNone;
  int32_t num_unheld_ = 0;
};

// Pages that `num_tokens` positions take.
int32_t KvPagesFor(int64_t num_tokens);

}  // namespace portolan
