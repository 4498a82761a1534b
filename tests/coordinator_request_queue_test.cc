#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "cluster/coordinator/request_queue.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Verdict = RequestQueue::TokenCheck::Verdict;

class RequestQueueTest : public ::testing::Test {
 protected:
  QueuedRequest Request(int64_t seq, std::string client = "ann") {
    return {.seq = seq,
            .client = std::move(client),
            .detached = true,
            .prompt_tokens = 10,
            .max_tokens = 20};
  }
  RankRegistration Rank(int rank = 0, uint64_t incarnation = 1) {
    return {.job = "job",
            .rank = rank,
            .world_size = 2,
            .incarnation = incarnation,
            .host = "host",
            .model_name = "tiny",
            .fingerprint = "f00d",
            .numerics_id = "n1",
            .max_sequences = 2,
            .held = {}};
  }
  // Each step of a test gets actions of its own.
  QueueActions Schedule() {
    QueueActions out;
    queue_.Schedule(now_, out);
    return out;
  }
  QueueActions TickAfter(absl::Duration time) {
    now_ += time;
    QueueActions out;
    queue_.Tick(now_, out);
    return out;
  }
  std::vector<ResumePoint> Attach(uint64_t session,
                                  const RankRegistration& rank) {
    QueueActions out;
    auto points = queue_.Register(session, rank, now_, out);
    EXPECT_TRUE(points.ok()) << points.status();
    return points.value_or(std::vector<ResumePoint>{});
  }
  // Loses the rank for good.
  QueueActions Kill(uint64_t session) {
    queue_.Disconnected(session, now_);
    return TickAfter(absl::Seconds(10));
  }

  QueueOptions options_ = {.max_queued_requests = 3};
  RequestQueue queue_{options_};
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
};

TEST_F(RequestQueueTest, AssignsAWaitingRequestWhenARankComes) {
  ASSERT_TRUE(queue_.Admit(Request(1), now_).status.ok());
  EXPECT_THAT(Schedule().assign, IsEmpty());
  Attach(7, Rank());

  const QueueActions out = Schedule();

  ASSERT_THAT(out.assign, SizeIs(1));
  EXPECT_EQ(out.assign[0].session, 7u);
  EXPECT_EQ(out.assign[0].seq, 1);
  EXPECT_EQ(out.assign[0].attempt, 1);
  EXPECT_THAT(out.changed, ElementsAre(1));
  EXPECT_EQ(queue_.Find(1)->state, RequestState::kRunning);
}

TEST_F(RequestQueueTest, NeverGivesARankMoreThanItsRoom) {
  Attach(7, Rank());
  for (int64_t seq = 1; seq <= 3; ++seq) queue_.Admit(Request(seq), now_);

  EXPECT_THAT(Schedule().assign, SizeIs(2));
  EXPECT_THAT(Schedule().assign, IsEmpty());
  queue_.Finish(1, now_);
  EXPECT_THAT(Schedule().assign, SizeIs(1));
}

TEST_F(RequestQueueTest, SpreadsRequestsOverRanksWithTheMostRoom) {
  Attach(7, Rank(0));
  Attach(8, Rank(1));
  for (int64_t seq = 1; seq <= 3; ++seq) queue_.Admit(Request(seq), now_);

  const QueueActions out = Schedule();

  ASSERT_THAT(out.assign, SizeIs(3));
  EXPECT_EQ(out.assign[0].session, 7u);
  EXPECT_EQ(out.assign[1].session, 8u);
}

TEST_F(RequestQueueTest, CountsAssignmentsThatAHeartbeatDidNotSee) {
  Attach(7, Rank());
  queue_.Admit(Request(1), now_);
  Schedule();
  queue_.Heartbeat(7, {.free_sequences = 1, .last_assign_serial = 0}, now_);
  queue_.Admit(Request(2), now_);
  EXPECT_THAT(Schedule().assign, IsEmpty());

  queue_.Heartbeat(7, {.free_sequences = 1, .last_assign_serial = 1}, now_);

  EXPECT_THAT(Schedule().assign, SizeIs(1));
}

TEST_F(RequestQueueTest, WakesTheIdlePeersOfARankThatGetsWork) {
  Attach(7, Rank(0));
  Attach(8, Rank(1));
  queue_.Admit(Request(1), now_);
  queue_.Admit(Request(2), now_);

  EXPECT_THAT(Schedule().wake, ElementsAre(8));
}

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

TEST_F(RequestQueueTest, TakesOnlyTheNextOffsetOfTheCurrentAttempt) {
  Attach(7, Rank());
  queue_.Admit(Request(1), now_);
  Schedule();

  EXPECT_EQ(queue_.TakeTokens(7, 1, 1, 0, 2, now_).verdict, Verdict::kTake);
  const auto again = queue_.TakeTokens(7, 1, 1, 1, 3, now_);
  EXPECT_EQ(again.verdict, Verdict::kTake);
  EXPECT_EQ(again.skip, 1);
  const auto gap = queue_.TakeTokens(7, 1, 1, 9, 1, now_);
  EXPECT_EQ(gap.verdict, Verdict::kGap);
  EXPECT_EQ(gap.expected, 4);
  EXPECT_EQ(queue_.TakeTokens(7, 1, 2, 4, 1, now_).verdict, Verdict::kDrop);
  EXPECT_EQ(queue_.TakeTokens(8, 1, 1, 4, 1, now_).verdict, Verdict::kDrop);
  EXPECT_EQ(queue_.Find(1)->num_tokens, 4);
}

TEST_F(RequestQueueTest, AnOldRankIsFencedOffAfterReassignment) {
  Attach(7, Rank(0));
  queue_.Admit(Request(1), now_);
  Schedule();
  queue_.TakeTokens(7, 1, 1, 0, 2, now_);
  Kill(7);
  Attach(8, Rank(1));
  ASSERT_THAT(Schedule().assign, SizeIs(1));

  EXPECT_EQ(queue_.Find(1)->attempt, 2);
  EXPECT_EQ(queue_.TakeTokens(7, 1, 1, 2, 1, now_).verdict, Verdict::kDrop);
  EXPECT_EQ(queue_.TakeTokens(8, 1, 1, 2, 1, now_).verdict, Verdict::kDrop);
  EXPECT_EQ(queue_.TakeTokens(8, 1, 2, 2, 1, now_).verdict, Verdict::kTake);
}

TEST_F(RequestQueueTest, ARankThatReattachesGoesOnWhereItWas) {
  Attach(7, Rank());
  queue_.Admit(Request(1), now_);
  Schedule();
  queue_.TakeTokens(7, 1, 1, 0, 5, now_);
  queue_.Disconnected(7, now_);
  EXPECT_THAT(TickAfter(absl::Seconds(9)).changed, IsEmpty());
  RankRegistration rank = Rank();
  rank.held = {{.seq = 1, .attempt = 1, .held_from = 3}};

  const auto points = Attach(8, rank);

  ASSERT_THAT(points, SizeIs(1));
  EXPECT_FALSE(points[0].drop);
  EXPECT_EQ(points[0].next_offset, 5);
  EXPECT_EQ(queue_.TakeTokens(8, 1, 1, 5, 1, now_).verdict, Verdict::kTake);
  EXPECT_EQ(queue_.Find(1)->deaths, 0);
}

TEST_F(RequestQueueTest, AfterTheReattachTimeTheRequestGoesToAnotherRank) {
  Attach(7, Rank(0));
  Attach(8, Rank(1));
  queue_.Admit(Request(1), now_);
  Schedule();
  queue_.Disconnected(7, now_);

  EXPECT_THAT(TickAfter(absl::Milliseconds(9999)).changed, IsEmpty());
  EXPECT_THAT(Schedule().assign, IsEmpty());
  queue_.Heard(8, now_);
  EXPECT_THAT(TickAfter(absl::Milliseconds(1)).changed, ElementsAre(1));
  const QueueActions out = Schedule();

  ASSERT_THAT(out.assign, SizeIs(1));
  EXPECT_EQ(out.assign[0].session, 8u);
  EXPECT_EQ(queue_.Find(1)->deaths, 1);
  RankRegistration late = Rank(0);
  late.held = {{.seq = 1, .attempt = 1, .held_from = 0}};
  EXPECT_TRUE(Attach(9, late)[0].drop);
}

TEST_F(RequestQueueTest, ANewProcessOfTheRankEndsTheWaitAtOnce) {
  Attach(7, Rank(0, 1));
  Attach(8, Rank(1, 1));
  queue_.Admit(Request(1), now_);
  queue_.Admit(Request(2), now_);
  Schedule();
  queue_.Disconnected(7, now_);
  queue_.Disconnected(8, now_);

  QueueActions out;
  ASSERT_TRUE(queue_.Register(9, Rank(0, 2), now_, out).ok());

  EXPECT_THAT(out.changed, ElementsAre(1, 2)) << "its peers died with it";
}

TEST_F(RequestQueueTest, AnAssignmentThatGotLostIsNoDeath) {
  Attach(7, Rank());
  queue_.Admit(Request(1), now_);
  Schedule();
  queue_.Disconnected(7, now_);

  Attach(8, Rank());

  EXPECT_EQ(queue_.Find(1)->state, RequestState::kQueued);
  EXPECT_EQ(queue_.Find(1)->deaths, 0);
  EXPECT_EQ(Schedule().assign[0].attempt, 2);
}

TEST_F(RequestQueueTest, AnAssignmentThatBreaksEveryStreamIsPoison) {
  queue_.Admit(Request(1), now_);
  QueueActions out;
  for (uint64_t session = 1; session <= 5; ++session) {
    ASSERT_TRUE(queue_.Register(session, Rank(), now_, out).ok());
    if (Schedule().assign.empty()) break;
    queue_.Disconnected(session, now_);
  }

  ASSERT_THAT(out.ended, SizeIs(1));
  EXPECT_THAT(out.ended[0].status.message(), HasSubstr("poison"));
  EXPECT_EQ(queue_.Find(1), nullptr);
}

TEST_F(RequestQueueTest, AssignmentsOfWhichTheRankHeardAreNoDeaths) {
  queue_.Admit(Request(1), now_);
  for (uint64_t session = 1; session <= 5; ++session) {
    Attach(session, Rank());
    const QueueActions out = Schedule();
    ASSERT_THAT(out.assign, SizeIs(1));
    queue_.Heartbeat(
        session,
        {.free_sequences = 1, .last_assign_serial = out.assign[0].serial},
        now_);
    queue_.Disconnected(session, now_);
  }

  EXPECT_EQ(queue_.Find(1)->deaths, 0);
}

TEST_F(RequestQueueTest, IsServedFromARanksComingToTheEndOfItsReattachTime) {
  EXPECT_FALSE(queue_.IsServed());
  Attach(7, Rank());
  EXPECT_TRUE(queue_.IsServed());
  queue_.Disconnected(7, now_);
  TickAfter(absl::Seconds(9));
  EXPECT_TRUE(queue_.IsServed()) << "it may come back";
  TickAfter(absl::Seconds(1));
  EXPECT_FALSE(queue_.IsServed());
}

TEST_F(RequestQueueTest, ARankThatIsKnownFromBeforeARestartServesNothing) {
  QueuedRequest request = Request(1);
  request.state = RequestState::kRunning;
  request.attempt = 1;
  request.job = "job";
  request.rank = 0;
  queue_.Restore(request, now_);

  EXPECT_FALSE(queue_.IsServed());
}

TEST_F(RequestQueueTest, TokensLostInAPowerCutAreGeneratedAgain) {
  QueuedRequest request = Request(1);
  request.state = RequestState::kRunning;
  request.attempt = 1;
  request.num_tokens = 3;
  request.numerics_id = "n1";
  request.job = "job";
  request.rank = 0;
  request.incarnation = 1;
  queue_.Restore(request, now_);
  RankRegistration rank = Rank();
  rank.held = {{.seq = 1, .attempt = 1, .held_from = 8}};

  EXPECT_TRUE(Attach(7, rank)[0].drop);

  EXPECT_EQ(Schedule().assign[0].attempt, 2);
  EXPECT_EQ(queue_.Find(1)->num_tokens, 3);
}

TEST_F(RequestQueueTest, APoisonRequestFailsAfterItsAttempts) {
  queue_.Admit(Request(1), now_);
  QueueActions out;
  for (uint64_t death = 1; death <= 3; ++death) {
    Attach(death, Rank(0, death));
    ASSERT_THAT(Schedule().assign, SizeIs(1));
    out = Kill(death);
  }

  ASSERT_THAT(out.ended, SizeIs(1));
  EXPECT_EQ(out.ended[0].state, RequestState::kFailed);
  EXPECT_THAT(out.ended[0].status.message(), HasSubstr("poison"));
  EXPECT_EQ(queue_.Find(1), nullptr);
}

TEST_F(RequestQueueTest, SuspectsOnTheirLastAttemptRunOneAtATime) {
  queue_.Admit(Request(1), now_);
  queue_.Admit(Request(2), now_);
  for (uint64_t death = 1; death <= 2; ++death) {
    Attach(death, Rank(0, death));
    ASSERT_THAT(Schedule().assign, SizeIs(2));
    Kill(death);
  }
  Attach(3, Rank(0, 3));

  EXPECT_THAT(Schedule().assign, SizeIs(1));
  queue_.Finish(1, now_);
  EXPECT_THAT(Schedule().assign, SizeIs(1));
}

TEST_F(RequestQueueTest, WhatARankGivesBackIsNoDeath) {
  Attach(7, Rank());
  queue_.Admit(Request(1), now_);
  Schedule();
  QueueActions out;

  queue_.Release(7, 1, 1, out);

  EXPECT_EQ(queue_.Find(1)->state, RequestState::kQueued);
  EXPECT_EQ(queue_.Find(1)->deaths, 0);
}

TEST_F(RequestQueueTest, ASilentRankIsLost) {
  Attach(7, Rank());
  queue_.Heard(7, now_ + absl::Seconds(1));

  EXPECT_THAT(TickAfter(absl::Seconds(10)).lost_sessions, IsEmpty());
  EXPECT_THAT(TickAfter(absl::Seconds(1)).lost_sessions, ElementsAre(7));
  EXPECT_EQ(queue_.num_attached(), 0);
}

TEST_F(RequestQueueTest, NamesTheOddRank) {
  Attach(7, Rank(0));
  RankRegistration odd = Rank(1);
  odd.numerics_id = "n2";
  QueueActions out;

  const auto points = queue_.Register(8, odd, now_, out);

  EXPECT_EQ(points.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(points.status().message(),
              HasSubstr("rank 1 of job 'job' on host has numerics id n2"));
}

TEST_F(RequestQueueTest, ASecondProcessDoesNotPushOutALivingRank) {
  Attach(7, Rank(0, 1));
  QueueActions out;

  EXPECT_EQ(queue_.Register(8, Rank(0, 2), now_, out).status().code(),
            absl::StatusCode::kAlreadyExists);
  now_ += absl::Seconds(3);
  EXPECT_TRUE(queue_.Register(8, Rank(0, 2), now_, out).ok());
  EXPECT_THAT(out.lost_sessions, ElementsAre(7));
}

TEST_F(RequestQueueTest, TokensBindARequestToTheirNumerics) {
  Attach(7, Rank(0, 1));
  queue_.Admit(Request(1), now_);
  queue_.Admit(Request(2), now_);
  Schedule();
  queue_.TakeTokens(7, 1, 1, 0, 1, now_);
  Kill(7);
  RankRegistration other = Rank(0, 2);
  other.numerics_id = "n2";
  Attach(8, other);

  const QueueActions out = Schedule();

  ASSERT_THAT(out.assign, SizeIs(1)) << "request 2 has no tokens yet";
  EXPECT_EQ(out.assign[0].seq, 2);
}

TEST_F(RequestQueueTest, ARequestWaitsForItsModelAndHoldsUpNobody) {
  Attach(7, Rank());
  QueuedRequest other = Request(1);
  other.model = "big";
  queue_.Admit(other, now_);
  queue_.Admit(Request(2), now_);
  QueuedRequest named = Request(3);
  named.model = "f00d";
  queue_.Admit(named, now_);

  const QueueActions out = Schedule();

  ASSERT_THAT(out.assign, SizeIs(2));
  EXPECT_EQ(queue_.Find(1)->state, RequestState::kQueued);
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

TEST_F(RequestQueueTest, DrainingGivesOutNothingNew) {
  Attach(7, Rank());
  queue_.Admit(Request(1), now_);
  queue_.Drain();

  EXPECT_THAT(Schedule().assign, IsEmpty());
}

TEST_F(RequestQueueTest, ARankMayComeBackToADrainWithWhatItRuns) {
  Attach(7, Rank());
  queue_.Admit(Request(1), now_);
  ASSERT_THAT(Schedule().assign, SizeIs(1));
  queue_.Drain();
  queue_.Disconnected(7, now_);

  QueueActions out;
  EXPECT_TRUE(
      absl::IsUnavailable(queue_.Register(8, Rank(1, 5), now_, out).status()));
  RankRegistration again = Rank();
  again.held.push_back({.seq = 1, .attempt = 1, .held_from = 0});
  const auto points = Attach(9, again);
  ASSERT_THAT(points, SizeIs(1));
  EXPECT_FALSE(points[0].drop);
  EXPECT_EQ(queue_.TakeTokens(9, 1, 1, 0, 2, now_).verdict, Verdict::kTake);
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
