// Ranks: who gets the next request, who goes on, and what a lost one leaves.

#include <gmock/gmock.h>

#include "tests/coordinator_request_queue_fixture.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Verdict = RequestQueue::TokenCheck::Verdict;

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

}  // namespace
}  // namespace portolan
