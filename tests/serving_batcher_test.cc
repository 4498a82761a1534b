#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "runtime/serving/batcher.h"

namespace portolan {

bool operator==(const ScheduledSequence& a, const ScheduledSequence& b) {
  return a.id == b.id && a.first == b.first && a.num_tokens == b.num_tokens &&
         a.samples == b.samples;
}

namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr int32_t kManyPages = 1000;

ScheduledSequence Chunk(int64_t id, int64_t first, int64_t num_tokens,
                        bool samples) {
  return {id, first, num_tokens, samples};
}

TEST(BatcherTest, ComputesAPromptThenDecodesTokenByToken) {
  Batcher batcher({});
  batcher.Add(7, 10);

  EXPECT_THAT(batcher.Next(kManyPages).sequences,
              ElementsAre(Chunk(7, 0, 10, true)));
  batcher.Extend(7);
  EXPECT_THAT(batcher.Next(kManyPages).sequences,
              ElementsAre(Chunk(7, 10, 1, true)));
}

TEST(BatcherTest, SplitsALongPromptByTheTokenBudget) {
  Batcher batcher({.tokens_per_step = 4});
  batcher.Add(1, 9);

  EXPECT_THAT(batcher.Next(kManyPages).sequences,
              ElementsAre(Chunk(1, 0, 4, false)));
  EXPECT_THAT(batcher.Next(kManyPages).sequences,
              ElementsAre(Chunk(1, 4, 4, false)));
  EXPECT_THAT(batcher.Next(kManyPages).sequences,
              ElementsAre(Chunk(1, 8, 1, true)));
}

TEST(BatcherTest, DecodingGoesBeforePromptsInOneStep) {
  Batcher batcher({.tokens_per_step = 8});
  batcher.Add(1, 8);
  batcher.Next(kManyPages);
  batcher.Extend(1);
  batcher.Add(2, 20);

  EXPECT_THAT(batcher.Next(kManyPages).sequences,
              ElementsAre(Chunk(1, 8, 1, true), Chunk(2, 0, 7, false)));
}

TEST(BatcherTest, RunsAtMostMaxSequencesAndAdmitsInOrderOfArrival) {
  Batcher batcher({.max_sequences = 2});
  for (const int64_t id : {1, 2, 3}) batcher.Add(id, 1);

  EXPECT_THAT(batcher.Next(kManyPages).sequences,
              ElementsAre(Chunk(1, 0, 1, true), Chunk(2, 0, 1, true)));
  batcher.Remove(1);
  batcher.Extend(2);
  EXPECT_THAT(batcher.Next(kManyPages).sequences,
              ElementsAre(Chunk(2, 1, 1, true), Chunk(3, 0, 1, true)));
}

TEST(BatcherTest, PreemptsTheYoungestWhenPagesRunOut) {
  Batcher batcher({.tokens_per_page = 4});
  batcher.Add(1, 4);
  batcher.Add(2, 4);
  batcher.Next(2);
  batcher.Extend(1);
  batcher.Extend(2);

  const Batcher::Plan& plan = batcher.Next(0);

  EXPECT_THAT(plan.preempted, ElementsAre(2));
  EXPECT_THAT(plan.sequences, ElementsAre(Chunk(1, 4, 1, true)));
  EXPECT_EQ(batcher.num_waiting(), 1);
}

TEST(BatcherTest, APreemptedSequenceIsComputedAgainFromTheStart) {
  Batcher batcher({.tokens_per_page = 4});
  batcher.Add(1, 4);
  batcher.Add(2, 4);
  batcher.Next(2);
  batcher.Extend(1);
  batcher.Extend(2);
  batcher.Next(0);
  batcher.Remove(1);

  EXPECT_THAT(batcher.Next(3).sequences, ElementsAre(Chunk(2, 0, 5, true)));
}

TEST(BatcherTest, HalfComputedPromptsThatHoldAllPagesDoNotBlockEachOther) {
  Batcher batcher({.tokens_per_step = 4, .tokens_per_page = 4});
  batcher.Add(1, 12);
  int32_t free = 4;
  batcher.Next(free);  // 1 computes 4 tokens
  batcher.Add(2, 12);
  std::map<int64_t, int64_t> computed = {{1, 4}};
  std::map<int64_t, int32_t> pages = {{1, 1}};

  // Both need three pages of the four; the elder must come through.
  for (int step = 0; step < 10 && computed[1] < 12; ++step) {
    int32_t held = 0;
    for (const auto& [id, count] : pages) held += count;
    const Batcher::Plan& plan = batcher.Next(4 - held);
    for (const int64_t id : plan.preempted) pages[id] = 0;
    for (const ScheduledSequence& s : plan.sequences) {
      computed[s.id] = s.first + s.num_tokens;
      pages[s.id] = static_cast<int32_t>((computed[s.id] + 3) / 4);
    }
  }

  EXPECT_EQ(computed[1], 12);
}

// Says what a sequence finds cached, and remembers whose pages were given back.
struct FakePages {
  std::map<int64_t, Batcher::Cached> cached = {};
  std::map<int64_t, int32_t> freed = {};  // by giving back
  std::vector<int64_t> given_back = {};

  const Batcher::Plan& Next(Batcher& batcher, int32_t free_pages) {
    const auto adopt = [this](int64_t id) { return cached[id]; };
    const auto give_back = [this](int64_t id) {
      given_back.push_back(id);
      return freed[id];
    };
    return batcher.Next(free_pages, {adopt, give_back});
  }
};

TEST(BatcherTest, BeginsBehindWhatIsCached) {
  Batcher batcher({.tokens_per_page = 4});
  batcher.Add(1, 10);
  FakePages pages{.cached = {{1, {.num_tokens = 8, .pages_taken = 2}}}};

  EXPECT_THAT(pages.Next(batcher, 5).sequences,
              ElementsAre(Chunk(1, 8, 2, true)));
}

TEST(BatcherTest, AllButOneTokenCachedIsStillAStep) {
  Batcher batcher({.tokens_per_page = 4});
  batcher.Add(1, 9);
  FakePages pages{.cached = {{1, {.num_tokens = 8, .pages_taken = 2}}}};

  EXPECT_THAT(pages.Next(batcher, 3).sequences,
              ElementsAre(Chunk(1, 8, 1, true)));
}

TEST(BatcherTest, CachedPagesThatWereFreeAreFreeNoMore) {
  Batcher batcher({.tokens_per_page = 4});
  batcher.Add(1, 9);
  batcher.Add(2, 4);
  FakePages pages{.cached = {{1, {.num_tokens = 8, .pages_taken = 2}}}};

  // Of three pages two are taken by what is cached and one by the last token.
  EXPECT_THAT(pages.Next(batcher, 3).sequences,
              ElementsAre(Chunk(1, 8, 1, true)));
  EXPECT_EQ(batcher.num_waiting(), 1);
}

TEST(BatcherTest, ASequenceWithoutRoomGivesCachedPagesBackAndWaits) {
  Batcher batcher({.tokens_per_page = 4});
  batcher.Add(1, 7);
  FakePages pages;
  pages.Next(batcher, 2);
  batcher.Extend(1);
  batcher.Add(2, 9);
  pages.cached[2] = {.num_tokens = 8, .pages_taken = 0};  // shares with 1

  EXPECT_THAT(pages.Next(batcher, 0).sequences,
              ElementsAre(Chunk(1, 7, 1, true)));
  EXPECT_THAT(pages.given_back, ElementsAre(2));
  EXPECT_EQ(batcher.num_waiting(), 1);
}

TEST(BatcherTest, GoesOnPreemptingWhereAVictimOnlySharedItsPages) {
  Batcher batcher({.tokens_per_page = 4});
  FakePages pages;
  for (const int64_t id : {1, 2, 3}) {
    batcher.Add(id, 4);
    pages.Next(batcher, 1);
  }
  for (const int64_t id : {1, 2, 3}) batcher.Extend(id);
  pages.freed = {{2, 1}, {3, 0}};

  const Batcher::Plan& plan = pages.Next(batcher, 0);

  EXPECT_THAT(plan.preempted, ElementsAre(3, 2));
  EXPECT_THAT(plan.sequences, ElementsAre(Chunk(1, 4, 1, true)));
}

TEST(BatcherTest, PreemptedSequencesRunAgainInTheirOldOrder) {
  Batcher batcher({.tokens_per_page = 4});
  for (const int64_t id : {1, 2, 3}) batcher.Add(id, 4);
  batcher.Next(3);
  for (const int64_t id : {1, 2, 3}) batcher.Extend(id);
  batcher.Next(0);  // 1 takes the page of 3 for its fifth token
  batcher.Add(4, 4);
  batcher.Remove(1);

  const Batcher::Plan& plan = batcher.Next(10);

  ASSERT_EQ(plan.sequences.size(), 3u);
  EXPECT_EQ(plan.sequences[0].id, 2);
  EXPECT_EQ(plan.sequences[1].id, 3);
  EXPECT_EQ(plan.sequences[2].id, 4);
}

// Whatever comes, ends and runs out of pages.
TEST(BatcherTest, NoDecodingSequenceMissesAStepHoweverFewTokensAStepHas) {
  constexpr int32_t kPages = 12;
  std::mt19937 random(7);
  const auto below = [&](uint32_t n) { return random() % n; };
  for (int64_t budget = 1; budget <= 6; ++budget) {
    Batcher batcher(
        {.max_sequences = 8, .tokens_per_step = budget, .tokens_per_page = 4});
    std::map<int64_t, int64_t> computed;  // tokens in the cache, by sequence
    std::set<int64_t> decoding;
    int64_t next_id = 0;
    size_t most = 0;
    for (int step = 0; step < 2000; ++step) {
      while (batcher.num_waiting() < 3) batcher.Add(++next_id, 1 + below(20));
      int32_t held = 0;
      for (const auto& [id, tokens] : computed) {
        held += static_cast<int32_t>((tokens + 3) / 4);
      }
      const Batcher::Plan plan = batcher.Next(kPages - held);
      std::set<int64_t> seen(plan.preempted.begin(), plan.preempted.end());
      for (const int64_t id : plan.preempted) computed.erase(id);
      for (const ScheduledSequence& s : plan.sequences) {
        seen.insert(s.id);
        computed[s.id] = s.first + s.num_tokens;
      }
      for (const int64_t id : decoding) {
        ASSERT_TRUE(seen.contains(id)) << id << " missed step " << step;
      }

      decoding.clear();
      for (const ScheduledSequence& s : plan.sequences) {
        if (!s.samples) continue;
        if (computed[s.id] > 30 || below(8) == 0) {
          batcher.Remove(s.id);
          computed.erase(s.id);
        } else {
          batcher.Extend(s.id);
          decoding.insert(s.id);
        }
      }
      most = std::max(most, decoding.size());
    }
    EXPECT_GT(next_id, 20) << "others had their turn";
    EXPECT_LE(most, static_cast<size_t>(budget));
    EXPECT_GE(most, static_cast<size_t>(std::min<int64_t>(budget, 4)));
  }
}

TEST(BatcherTest, NothingToDoGivesAnEmptyPlan) {
  Batcher batcher({});
  EXPECT_FALSE(batcher.HasWork());
  EXPECT_THAT(batcher.Next(kManyPages).sequences, IsEmpty());
}

}  // namespace
}  // namespace portolan
