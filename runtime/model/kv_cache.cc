#include "runtime/model/kv_cache.h"

#include <cstring>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/cpu_topology.h"
#include "runtime/base/status_macros.h"
#include "runtime/kernels/kv_layout.h"

namespace portolan {
namespace {

constexpr int32_t kNone = PrefixIndex::kNone;

std::span<const int32_t> PageOf(std::span<const int32_t> tokens, size_t page) {
  return tokens.subspan(page * kPageTokens, kPageTokens);
}

}  // namespace

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
  PlaceMemory(memory.bytes(), options.numa_nodes);
  return KvCache(options, std::move(memory));
}

KvCache::KvCache(const Options& options, AlignedBuffer memory)
    : options_(options),
      memory_(std::move(memory)),
      index_(options.num_pages),
      states_(static_cast<size_t>(options.num_pages)) {
  free_.reserve(static_cast<size_t>(options.num_pages));
  // Lowest page last, so that it is taken first.
  for (int32_t page = options.num_pages - 1; page >= 0; --page) {
    free_.push_back(page);
  }
}

bool KvCache::Grow(std::vector<int32_t>& pages, int64_t num_tokens) {
  const auto wanted = static_cast<size_t>(KvPagesFor(num_tokens));
  if (wanted > pages.size() + static_cast<size_t>(num_free())) return false;
  while (pages.size() < wanted) {
    const int32_t page = TakeFree();
    State(page).holders = 1;
    // A page is read in whole blocks of keys. What no position has written yet
    // has the weight 0, but another sequence may have left infinities there.
    std::memset(Page(page, 0), 0,
                static_cast<size_t>(options_.page_bytes) *
                    static_cast<size_t>(options_.num_layers));
    pages.push_back(page);
  }
  return true;
}

int32_t KvCache::Release(std::vector<int32_t>& pages) {
  int32_t num_freed = 0;
  // The last page first: of a chain that nobody holds the end is given up
  // before what it stands on.
  while (!pages.empty()) {
    num_freed += LetGo(pages.back()) ? 1 : 0;
    pages.pop_back();
  }
  return num_freed;
}

int64_t KvCache::Adopt(std::vector<int32_t>& pages,
                       std::span<const int32_t> tokens) {
  PORTOLAN_CHECK(pages.empty());
  const size_t most = tokens.empty() ? 0 : (tokens.size() - 1) / kPageTokens;
  int32_t before = kNone;
  while (pages.size() < most) {
    const int32_t page = index_.Find(before, PageOf(tokens, pages.size()));
    if (page == kNone) break;
    Hold(page);
    pages.push_back(page);
    before = page;
  }
  return static_cast<int64_t>(pages.size()) * kPageTokens;
}

int32_t KvCache::Publish(std::vector<int32_t>& pages, int32_t num_published,
                         std::span<const int32_t> computed) {
  const size_t full = computed.size() / kPageTokens;
  for (auto i = static_cast<size_t>(num_published); i < full; ++i) {
    const int32_t before = i == 0 ? kNone : pages[i - 1];
    const int32_t known = index_.Find(before, PageOf(computed, i));
    if (known == kNone) {
      index_.Insert(pages[i], before, PageOf(computed, i));
    } else {
      Hold(known);
      LetGo(pages[i]);
      pages[i] = known;
    }
  }
  return static_cast<int32_t>(full);
}

int32_t KvCache::TakeFree() {
  if (free_.empty()) {
    const int32_t victim = oldest_unheld_;
    RemoveUnheld(victim);
    index_.Erase(victim);
    return victim;
  }
  const int32_t page = free_.back();
  free_.pop_back();
  return page;
}

void KvCache::Hold(int32_t page) {
  if (State(page).holders++ == 0) RemoveUnheld(page);
}

// True if nobody holds the page any more.
bool KvCache::LetGo(int32_t page) {
  PORTOLAN_CHECK(State(page).holders > 0);
  if (--State(page).holders > 0) return false;
  if (index_.Contains(page)) {
    AppendUnheld(page);
  } else {
    free_.push_back(page);
  }
  return true;
}

void KvCache::AppendUnheld(int32_t page) {
  State(page).older = newest_unheld_;
  State(page).newer = kNone;
  (newest_unheld_ == kNone ? oldest_unheld_ : State(newest_unheld_).newer) =
      page;
  newest_unheld_ = page;
  ++num_unheld_;
}

void KvCache::RemoveUnheld(int32_t page) {
  const PageState& state = State(page);
  (state.older == kNone ? oldest_unheld_ : State(state.older).newer) =
      state.newer;
  (state.newer == kNone ? newest_unheld_ : State(state.newer).older) =
      state.older;
  --num_unheld_;
}

}  // namespace portolan
