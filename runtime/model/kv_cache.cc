#include "runtime/model/kv_cache.h"

#include <cstring>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/kernels/kv_layout.h"

namespace portolan {

int32_t KvPagesFor(int64_t num_tokens) {
  return static_cast<int32_t>((num_tokens + kPageTokens - 1) / kPageTokens);
}

absl::StatusOr<KvCache> KvCache::Create(const Options& options) {
  PORTOLAN_CHECK(options.num_pages > 0 && options.num_layers > 0);
  const int64_t bytes =
      options.page_bytes * options.num_layers * options.num_pages;
  PORTOLAN_ASSIGN_OR_RETURN(
      AlignedBuffer memory,
      AlignedBuffer::Allocate(static_cast<size_t>(bytes)));
  return KvCache(options, std::move(memory));
}

KvCache::KvCache(const Options& options, AlignedBuffer memory)
    : options_(options), memory_(std::move(memory)) {
  free_.reserve(static_cast<size_t>(options.num_pages));
  // Lowest page last, so that it is taken first.
  for (int32_t page = options.num_pages - 1; page >= 0; --page) {
    free_.push_back(page);
  }
}

bool KvCache::Grow(std::vector<int32_t>& pages, int64_t num_tokens) {
  const auto wanted = static_cast<size_t>(KvPagesFor(num_tokens));
  if (wanted > pages.size() + free_.size()) return false;
  while (pages.size() < wanted) {
    const int32_t page = free_.back();
    free_.pop_back();
    // A page is read in whole blocks of keys, so what no position has written
    // yet must be zero and not what another sequence left behind.
    std::memset(Page(page, 0), 0,
                static_cast<size_t>(options_.page_bytes) *
                    static_cast<size_t>(options_.num_layers));
    pages.push_back(page);
  }
  return true;
}

void KvCache::Release(std::vector<int32_t>& pages) {
  while (!pages.empty()) {
    free_.push_back(pages.back());
    pages.pop_back();
  }
}

}  // namespace portolan
