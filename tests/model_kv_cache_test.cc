#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "runtime/kernels/kv_layout.h"
#include "runtime/model/kv_cache.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

KvCache MakeCache(int32_t num_pages) {
  auto cache = KvCache::Create(
      {.num_layers = 1, .page_bytes = 64, .num_pages = num_pages});
  EXPECT_TRUE(cache.ok()) << cache.status();
  return *std::move(cache);
}

// `pages` pages of tokens, and one token more.
std::vector<int32_t> Text(int32_t first, int64_t pages) {
  std::vector<int32_t> tokens(static_cast<size_t>(pages * kPageTokens + 1));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// A sequence that has computed and published all of `tokens`.
std::vector<int32_t> Compute(KvCache& cache,
                             const std::vector<int32_t>& tokens) {
  std::vector<int32_t> pages;
  cache.Adopt(pages, tokens);
  const auto published = static_cast<int32_t>(pages.size());
  EXPECT_TRUE(cache.Grow(pages, static_cast<int64_t>(tokens.size())));
  cache.Publish(pages, published, tokens);
  return pages;
}

TEST(KvCacheTest, FindsThePagesOfAnEqualBeginningWhileTheyAreHeld) {
  KvCache cache = MakeCache(8);
  const std::vector<int32_t> first = Compute(cache, Text(0, 2));

  std::vector<int32_t> second;
  std::vector<int32_t> longer = Text(0, 2);
  longer.push_back(7);

  EXPECT_EQ(cache.Adopt(second, longer), 2 * kPageTokens);
  EXPECT_THAT(second, ElementsAre(first[0], first[1]));
}

TEST(KvCacheTest, FindsThemAfterTheirSequenceHasEnded) {
  KvCache cache = MakeCache(8);
  std::vector<int32_t> first = Compute(cache, Text(0, 2));
  const int32_t page = first[0];
  EXPECT_EQ(cache.Release(first), 3);
  EXPECT_EQ(cache.num_free(), 8);

  std::vector<int32_t> second;
  cache.Adopt(second, Text(0, 2));

  EXPECT_EQ(second.front(), page);
  EXPECT_EQ(cache.num_free(), 6);
}

TEST(KvCacheTest, LeavesOneTokenToCompute) {
  KvCache cache = MakeCache(8);
  Compute(cache, Text(0, 2));

  std::vector<int32_t> tokens = Text(0, 2);
  tokens.pop_back();  // two full pages and no token more
  std::vector<int32_t> pages;

  EXPECT_EQ(cache.Adopt(pages, tokens), kPageTokens);
}

TEST(KvCacheTest, APageIsKnownOnlyBehindTheSamePages) {
  KvCache cache = MakeCache(8);
  std::vector<int32_t> tokens = Text(0, 2);
  Compute(cache, tokens);
  tokens[3] = 4000;  // the second page has the same tokens still

  std::vector<int32_t> pages;
  EXPECT_EQ(cache.Adopt(pages, tokens), 0);
  EXPECT_THAT(pages, IsEmpty());
}

TEST(KvCacheTest, EqualPagesComputedTwiceBecomeOne) {
  KvCache cache = MakeCache(8);
  const std::vector<int32_t> tokens = Text(0, 2);
  std::vector<int32_t> a;
  std::vector<int32_t> b;
  EXPECT_TRUE(cache.Grow(a, 2 * kPageTokens));
  EXPECT_TRUE(cache.Grow(b, 2 * kPageTokens));
  EXPECT_EQ(cache.num_free(), 4);

  cache.Publish(a, 0, std::span(tokens).first(2 * kPageTokens));
  cache.Publish(b, 0, std::span(tokens).first(2 * kPageTokens));

  EXPECT_EQ(a, b);
  EXPECT_EQ(cache.num_free(), 6);
  EXPECT_EQ(cache.Release(a), 0);
  EXPECT_EQ(cache.Release(b), 2);
}

TEST(KvCacheTest, GivesUpWhatWasUnusedForLongestAndTheEndOfAChainFirst) {
  KvCache cache = MakeCache(6);
  std::vector<int32_t> old_text = Compute(cache, Text(0, 2));
  std::vector<int32_t> new_text = Compute(cache, Text(1000, 2));
  cache.Release(old_text);
  cache.Release(new_text);

  // Two pages were never published; one of the oldest chain must go too.
  std::vector<int32_t> other;
  EXPECT_TRUE(cache.Grow(other, 3 * kPageTokens));

  std::vector<int32_t> found;
  EXPECT_EQ(cache.Adopt(found, Text(0, 2)), kPageTokens);
  cache.Release(found);
  EXPECT_EQ(cache.Adopt(found, Text(1000, 2)), 2 * kPageTokens);
}

TEST(KvCacheTest, HeldPagesAreNeverTaken) {
  KvCache cache = MakeCache(3);
  const std::vector<int32_t> held = Compute(cache, Text(0, 1));

  std::vector<int32_t> other;
  EXPECT_TRUE(cache.Grow(other, kPageTokens));
  EXPECT_FALSE(cache.Grow(other, 2 * kPageTokens));
  EXPECT_THAT(other,
              ElementsAre(::testing::Not(::testing::AnyOf(held[0], held[1]))));
}

TEST(KvCacheTest, APageTakenAnewIsZero) {
  KvCache cache = MakeCache(2);
  std::vector<int32_t> pages = Compute(cache, Text(0, 1));
  for (const int32_t page : pages) cache.Page(page, 0)[5] = std::byte{9};
  cache.Release(pages);

  EXPECT_TRUE(cache.Grow(pages, 2 * kPageTokens));
  for (const int32_t page : pages) {
    EXPECT_EQ(cache.Page(page, 0)[5], std::byte{0});
  }
}

}  // namespace
}  // namespace portolan
