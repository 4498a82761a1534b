// How long a live call waits for a rank before it is refused.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "cluster/coordinator/request_queue.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class QueueWaitTest : public ::testing::Test {
 protected:
  static QueuedRequest Live(int64_t seq, std::string client = "ann") {
    return {.seq = seq,
            .client = std::move(client),
            .model = "tiny",
            .prompt_tokens = 10,
            .max_tokens = 20};
  }
  static QueuedRequest Submitted(int64_t seq) {
    QueuedRequest request = Live(seq);
    request.detached = true;
    return request;
  }
  void Attach(uint64_t session, std::string model, int max_sequences = 1) {
    QueueActions out;
    const RankRegistration rank{.job = model,
                                .incarnation = 1,
                                .model_name = model,
                                .fingerprint = model,
                                .numerics_id = "n1",
                                .max_sequences = max_sequences};
    ASSERT_TRUE(queue_.Register(session, rank, now_, out).ok());
  }
  void Admit(const QueuedRequest& request) {
    const auto refusal = queue_.Admit(request, now_);
    ASSERT_TRUE(refusal.status.ok()) << refusal.status;
    if (!request.detached) queue_.WatcherCame(request.seq);
  }
  // As the coordinator does after every event.
  QueueActions Turn() {
    QueueActions out;
    queue_.Tick(now_, out);
    queue_.Schedule(now_, out);
    return out;
  }
  static std::vector<int64_t> Assigned(const QueueActions& out) {
    std::vector<int64_t> seqs;
    for (const auto& assignment : out.assign) seqs.push_back(assignment.seq);
    return seqs;
  }
  static std::vector<int64_t> Ended(const QueueActions& out) {
    std::vector<int64_t> seqs;
    for (const auto& ending : out.ended) seqs.push_back(ending.seq);
    return seqs;
  }

  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  RequestQueue queue_{{.max_queue_wait = absl::Seconds(2)}};
};

TEST_F(QueueWaitTest, ALiveCallIsRefusedWhenTheExpectedWaitIsTooLong) {
  RequestQueue queue({.max_queue_wait = absl::Seconds(1)});
  QueueActions out;
  const RankRegistration rank{.job = "job",
                              .incarnation = 1,
                              .model_name = "tiny",
                              .numerics_id = "n1",
                              .max_sequences = 2};
  ASSERT_TRUE(queue.Register(7, rank, now_, out).ok());
  // 30 tokens a second were served in the last two seconds.
  for (int64_t seq = 1; seq <= 2; ++seq) {
    queue.Admit(Submitted(seq), now_);
    queue.Schedule(now_, out);
    queue.Finish(seq, now_);
    now_ += absl::Seconds(1);
  }
  for (int64_t seq = 3; seq <= 6; ++seq) queue.Admit(Submitted(seq), now_);
  queue.Schedule(now_, out);

  // Two of ann's wait: of them as much as bob asks for goes first, 1 s.
  EXPECT_TRUE(queue.Admit(Live(7, "bob"), now_).status.ok());
  const auto refusal = queue.Admit(Live(8, "bob"), now_);

  EXPECT_TRUE(absl::IsResourceExhausted(refusal.status));
  EXPECT_THAT(refusal.status.message(), HasSubstr("--max-queue-wait"));
  EXPECT_TRUE(queue.Admit(Submitted(9), now_).status.ok())
      << "submitted ones may";
  queue.FirstTokenSent(Live(1), absl::Milliseconds(1), now_);
  EXPECT_FALSE(queue.Admit(Live(10, "eve"), now_).status.ok())
      << "a start takes its time too";
}

TEST_F(QueueWaitTest, ALiveCallThatWaitedTooLongIsRefused) {
  Admit(Live(1));
  EXPECT_THAT(Turn().ended, IsEmpty());
  EXPECT_EQ(queue_.NextTick(), now_ + absl::Seconds(2));

  now_ += absl::Seconds(2);
  const QueueActions out = Turn();

  ASSERT_THAT(Ended(out), ElementsAre(1));
  EXPECT_TRUE(absl::IsResourceExhausted(out.ended[0].status));
}

TEST_F(QueueWaitTest, WhatAStartTakesIsNotLeftForTheWait) {
  queue_.FirstTokenSent(Live(100), absl::Milliseconds(500), now_);
  Admit(Live(1));
  Admit(Submitted(2));
  EXPECT_THAT(Turn().ended, IsEmpty());
  EXPECT_LT(queue_.NextTick(), now_ + absl::Milliseconds(1501));

  // The estimate has faded by then, and so there is more time.
  now_ = queue_.NextTick();
  EXPECT_THAT(Turn().ended, IsEmpty());
  EXPECT_GT(queue_.NextTick(), now_);
  EXPECT_LT(queue_.NextTick(), now_ + absl::Milliseconds(100));

  now_ += absl::Milliseconds(100);
  EXPECT_THAT(Ended(Turn()), ElementsAre(1)) << "a submitted one waits";
}

TEST_F(QueueWaitTest, OneThatCanNoLongerStartInTimeIsNotGivenToARank) {
  Attach(7, "tiny");
  Admit(Live(1));
  Admit(Live(2));
  Admit(Live(3));
  ASSERT_THAT(Assigned(Turn()), ElementsAre(1));

  // Starts have become slower while they waited.
  now_ += absl::Milliseconds(1200);
  queue_.FirstTokenSent(Live(1), absl::Seconds(1), now_);
  Admit(Live(4));
  queue_.Finish(1, now_);
  const QueueActions out = Turn();

  EXPECT_THAT(Ended(out), ElementsAre(2, 3));
  EXPECT_TRUE(absl::IsResourceExhausted(out.ended[0].status));
  EXPECT_THAT(Assigned(out), ElementsAre(4));
  EXPECT_EQ(queue_.num_queued(), 0);
}

TEST_F(QueueWaitTest, OneThatFindsRoomAtOnceIsTakenHoweverSlowStartsAre) {
  Attach(7, "tiny");
  queue_.FirstTokenSent(Live(100), absl::Minutes(1), now_);
  Admit(Live(1));
  Admit(Live(2));
  now_ += absl::Milliseconds(1);

  EXPECT_THAT(Assigned(Turn()), ElementsAre(1));
  now_ += absl::Milliseconds(1);
  EXPECT_THAT(Ended(Turn()), ElementsAre(2)) << "there is no time to wait";
}

TEST_F(QueueWaitTest, APauseIsForgottenThoughNothingIsAccepted) {
  queue_.FirstTokenSent(Live(100), absl::Minutes(10), now_);
  now_ += StartTimes::kHalfLife;

  Admit(Live(1));
  Turn();

  EXPECT_GE(queue_.NextTick(), now_ + absl::Seconds(1))
      << "a pause counts as the whole wait at most";
}

TEST_F(QueueWaitTest, ASlowModelLeavesTheOthersTheirWait) {
  queue_.FirstTokenSent(Live(100), absl::Minutes(1), now_);
  QueuedRequest other = Live(1);
  other.model = "quick";
  Admit(other);
  Turn();

  EXPECT_EQ(queue_.NextTick(), now_ + absl::Seconds(2));
}

TEST_F(QueueWaitTest, OneThatIsDetachedMeanwhileWaitsOn) {
  Admit(Live(1));
  Turn();
  queue_.Detach(1, absl::InfiniteFuture());
  now_ += absl::Minutes(1);

  EXPECT_THAT(Turn().ended, IsEmpty());
  EXPECT_EQ(queue_.num_queued(), 1);
}

}  // namespace
}  // namespace portolan
