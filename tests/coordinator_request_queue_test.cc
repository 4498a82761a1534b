// Clients: what is let in, for how long, and what is told of it.

#include <gmock/gmock.h>

#include <random>
#include <set>

#include "tests/coordinator_request_queue_fixture.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST_F(RequestQueueTest, RefusesMoreThanTheQueueHolds) {
  for (int64_t seq = 1; seq <= 3; ++seq) {
    ASSERT_TRUE(queue_.Admit(Request(seq), now_).status.ok());
  }

  const auto refusal = queue_.Admit(Request(4), now_);

  EXPECT_TRUE(absl::IsResourceExhausted(refusal.status));
  EXPECT_THAT(refusal.status.message(), HasSubstr("--max-queued 3"));
  EXPECT_GE(refusal.retry_after, absl::Seconds(1));
  EXPECT_EQ(queue_.Find(4), nullptr);
}

TEST_F(RequestQueueTest, WhatIsBeyondALimitByItselfIsRefusedForGood) {
  options_.max_queued_tokens = 29;
  EXPECT_TRUE(absl::IsOutOfRange(
      RequestQueue(options_).Admit(Request(1), now_).status));

  options_.max_queued_tokens = 1000;
  options_.max_client_tokens = 29;
  const auto refusal = RequestQueue(options_).Admit(Request(1), now_);
  EXPECT_TRUE(absl::IsOutOfRange(refusal.status));
  EXPECT_THAT(refusal.status.message(), HasSubstr("params.max_tokens is 20"));
  EXPECT_THAT(refusal.status.message(), HasSubstr("--client-tokens 29"));
}

TEST_F(RequestQueueTest, AQuotaBindsOneClientOnly) {
  options_.max_client_requests = 1;
  RequestQueue queue(options_);
  ASSERT_TRUE(queue.Admit(Request(1, "ann"), now_).status.ok());

  const auto refusal = queue.Admit(Request(2, "ann"), now_);

  EXPECT_TRUE(absl::IsResourceExhausted(refusal.status));
  EXPECT_THAT(refusal.status.message(), HasSubstr("'ann'"));
  EXPECT_TRUE(queue.Admit(Request(3, "bob"), now_).status.ok());
  queue.Withdraw(1);
  EXPECT_TRUE(queue.Admit(Request(4, "ann"), now_).status.ok());
}

TEST_F(RequestQueueTest, TheDeadlineEndsAQueuedAndARunningRequest) {
  Attach(7, Rank());
  for (int64_t seq = 1; seq <= 3; ++seq) {
    QueuedRequest request = Request(seq);
    request.deadline = now_ + absl::Seconds(5);
    queue_.Admit(request, now_);
  }
  Schedule();

  const QueueActions out = TickAfter(absl::Seconds(5));

  ASSERT_THAT(out.ended, SizeIs(3));
  for (const auto& ending : out.ended) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(ending.status));
  }
  EXPECT_THAT(out.revoke, SizeIs(2)) << "the rank frees the slots";
  EXPECT_EQ(queue_.num_running(), 0);
}

TEST_F(RequestQueueTest, ALiveCallEndsWithItsClientASubmittedOneDoesNot) {
  QueuedRequest live = Request(1);
  live.detached = false;
  queue_.Admit(live, now_);
  queue_.Admit(Request(2), now_);
  QueueActions out;
  for (const int64_t seq : {1, 2}) {
    queue_.WatcherCame(seq);
    queue_.WatcherWent(seq, /*owner=*/true, now_, out);
  }

  ASSERT_THAT(out.ended, SizeIs(1));
  EXPECT_EQ(out.ended[0].seq, 1);
  EXPECT_EQ(out.ended[0].state, RequestState::kCancelled);
}

TEST_F(RequestQueueTest, AfterARestartALiveCallWaitsForItsClient) {
  for (const int64_t seq : {1, 2}) {
    QueuedRequest live = Request(seq);
    live.detached = false;
    queue_.Restore(live, now_);
  }
  queue_.WatcherCame(2);

  const QueueActions out = TickAfter(absl::Seconds(10));

  ASSERT_THAT(out.ended, SizeIs(1));
  EXPECT_EQ(out.ended[0].seq, 1);
  EXPECT_EQ(out.ended[0].state, RequestState::kCancelled);
}

TEST_F(RequestQueueTest, ADetachedRequestOutlivesItsCall) {
  QueuedRequest live = Request(1);
  live.detached = false;
  live.deadline = now_ + absl::Seconds(1);
  ASSERT_TRUE(queue_.Admit(live, now_).status.ok());
  ASSERT_TRUE(queue_.Admit(Request(2), now_).status.ok());
  queue_.WatcherCame(1);

  queue_.Detach(1, absl::InfiniteFuture());
  QueueActions out;
  queue_.WatcherWent(1, /*owner=*/true, now_, out);

  EXPECT_THAT(out.ended, IsEmpty());
  EXPECT_THAT(TickAfter(absl::Hours(1)).ended, IsEmpty());
  EXPECT_EQ(queue_.num_queued(), 2);
  EXPECT_EQ(queue_.Position(2), 1) << "they wait in the same flow now";
  Attach(7, Rank());
  EXPECT_THAT(Schedule().assign, SizeIs(2));
}

TEST_F(RequestQueueTest, SpellingsOfOneModelShareAFlow) {
  QueuedRequest by_name = Request(1);
  by_name.model = "tiny";
  by_name.label = "tiny";
  QueuedRequest by_fingerprint = Request(2);
  by_fingerprint.model = "f00d";
  by_fingerprint.label = "tiny";
  ASSERT_TRUE(queue_.Admit(by_name, now_).status.ok());
  ASSERT_TRUE(queue_.Admit(by_fingerprint, now_).status.ok());

  EXPECT_EQ(queue_.Position(2), 1);
}

TEST_F(RequestQueueTest, TheRankTellsTheModelOfARequestThatNamesNone) {
  ASSERT_TRUE(queue_.Admit(Request(1), now_).status.ok());
  EXPECT_EQ(queue_.loads().at("").queued, 1);

  Attach(1, Rank());
  Schedule();

  EXPECT_EQ(queue_.Find(1)->label, "tiny");
  EXPECT_EQ(queue_.loads().at("tiny").running, 1);
  EXPECT_FALSE(queue_.loads().contains(""));
}

TEST_F(RequestQueueTest, LoadIsToldOfModelsThatAreServedOrWaitedFor) {
  QueuedRequest other = Request(1);
  other.model = "other";
  ASSERT_TRUE(queue_.Admit(other, now_).status.ok());
  Attach(1, Rank());
  EXPECT_EQ(queue_.loads().size(), 2u);

  Kill(1);
  EXPECT_FALSE(queue_.loads().contains("tiny"));
  queue_.Withdraw(1);
  EXPECT_TRUE(queue_.loads().empty());
}

// Random events, and after each one: every request is in one place.
TEST_F(RequestQueueTest, KeepsCountUnderRandomEvents) {
  RequestQueue queue({.max_queued_requests = 20, .max_attempts = 2});
  std::mt19937 random(17);
  std::set<int64_t> alive;
  int64_t next_seq = 1;
  uint64_t next_session = 1;
  std::vector<uint64_t> sessions(3, 0);
  for (int step = 0; step < 20'000; ++step) {
    QueueActions out;
    const size_t r = random() % 3;
    switch (random() % 8) {
      case 0:
      case 1:
        if (queue.Admit(Request(next_seq), now_).status.ok()) {
          alive.insert(next_seq);
        }
        ++next_seq;
        break;
      case 2: {
        const uint64_t session = next_session++;
        if (queue
                .Register(session, Rank(static_cast<int>(r), random() % 2),
                          now_, out)
                .ok()) {
          sessions[r] = session;
        }
        break;
      }
      case 3:
        queue.Disconnected(sessions[r], now_);
        break;
      case 4:
        queue.Goodbye(sessions[r], random() % 2 == 0, out);
        break;
      case 5:
        if (!alive.empty()) {
          const int64_t seq = *alive.begin();
          if (random() % 2 == 0) {
            queue.Cancel(seq, absl::CancelledError(""), out);
          } else if (queue.Find(seq)->state == RequestState::kRunning) {
            queue.Finish(seq, now_);
            alive.erase(seq);
          }
        }
        break;
      default:
        now_ += absl::Milliseconds(random() % 2000);
        for (const uint64_t session : sessions) queue.Heard(session, now_);
        queue.Tick(now_, out);
    }
    queue.Schedule(now_, out);
    for (const auto& ending : out.ended) alive.erase(ending.seq);

    int64_t running = 0;
    for (const int64_t seq : alive) {
      ASSERT_NE(queue.Find(seq), nullptr);
      running += queue.Find(seq)->state == RequestState::kRunning;
    }
    ASSERT_EQ(queue.num_running(), running);
    ASSERT_EQ(queue.num_queued(), static_cast<int64_t>(alive.size()) - running);
    for (const auto& rank : queue.Ranks(now_)) ASSERT_LE(rank.running, 2);
  }
  EXPECT_GT(next_seq, 1000);
}

}  // namespace
}  // namespace portolan
