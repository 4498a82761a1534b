#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <thread>
#include <vector>

#include "comm/heartbeat.h"
#include "runtime/base/check.h"
#include "runtime/base/steady_now.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kJob = 42;
constexpr HeartbeatOptions kQuick{.beat = absl::Milliseconds(5),
                                  .silence = absl::Milliseconds(400)};
constexpr HeartbeatOptions kNeverSilent{.beat = absl::Milliseconds(1),
                                        .silence = absl::Minutes(10)};

// A rank of a host of its own, as the others see it: a socket on this machine.
struct Node {
  explicit Node(int number) : rank(Rank{number}) {
    endpoint = Heartbeat::OpenEndpoint(/*other_hosts=*/true);
    endpoint.address.num_addresses = 1;
    endpoint.address.ipv4[0] = htonl(INADDR_LOOPBACK);
  }

  LifePeer AsPeer() const {
    return {.rank = rank, .address = endpoint.address};
  }

  void Start(std::vector<LifePeer> peers, HeartbeatOptions options = kQuick,
             uint64_t job = kJob) {
    heartbeat = std::make_unique<Heartbeat>(rank, cell, std::move(peers),
                                            endpoint, job, options);
    heartbeat->Start();
  }

  // Waits until it has lost somebody.
  LostPeer Loss() const {
    const absl::Time end = SteadyNow() + absl::Seconds(60);
    while (SteadyNow() < end) {
      if (const auto lost = heartbeat->lost()) return *lost;
      std::this_thread::yield();
    }
    return {.rank = Rank{-1}, .how = "nobody was lost"};
  }

  void WaitForBeats(uint64_t beats) const {
    while (cell.beats.load() < beats) std::this_thread::yield();
  }

  Rank rank;
  LifeCell cell{};
  Heartbeat::Endpoint endpoint;
  std::unique_ptr<Heartbeat> heartbeat;
};

// A process that only waits.
class Child {
 public:
  Child() : pid_(fork()) {
    while (pid_ == 0) pause();
    PORTOLAN_CHECK(pid_ > 0);
  }
  ~Child() {
    if (!reaped_) End();
  }
  // Its pid stays taken until Reap().
  void Kill() {
    kill(pid_, SIGKILL);
    siginfo_t info;
    waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT);
  }
  void End() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    reaped_ = true;
  }
  // As a rank of this host.
  LifePeer AsPeer(int rank, LifeCell& cell) const {
    LifePeer peer{.rank = Rank{rank},
                  .address = Heartbeat::OpenEndpoint(false).address,
                  .cell = &cell};
    peer.address.pid = pid_;
    return peer;
  }

 private:
  pid_t pid_;
  bool reaped_ = false;
};

TEST(HeartbeatTest, ARankOfAnotherHostThatFallsSilentIsLost) {
  Node a(0), b(1);
  a.Start({b.AsPeer()});
  b.Start({a.AsPeer()});
  a.WaitForBeats(20);

  b.heartbeat.reset();  // as if its host had lost power
  const LostPeer lost = a.Loss();

  EXPECT_EQ(lost.rank, Rank{1});
  EXPECT_THAT(lost.how, HasSubstr("no sign of life for 400ms"));
}

TEST(HeartbeatTest, AFailureOnAnotherHostComesWithItsCodeAndReason) {
  Node a(0), b(1);
  a.Start({b.AsPeer()}, kNeverSilent);
  b.Start({a.AsPeer()}, kNeverSilent);

  b.heartbeat->Announce(absl::DataLossError("expert L1/E3"));
  const LostPeer lost = a.Loss();

  EXPECT_EQ(lost.rank, Rank{1});
  EXPECT_EQ(lost.code, absl::StatusCode::kDataLoss);
  EXPECT_THAT(lost.how, HasSubstr("it failed: expert L1/E3"));
}

TEST(HeartbeatTest, ARankOfAnotherHostThatSaidGoodbyeMayFallSilent) {
  Node a(0), b(1), c(2);
  a.Start({b.AsPeer(), c.AsPeer()});
  b.Start({a.AsPeer(), c.AsPeer()});
  c.Start({a.AsPeer(), b.AsPeer()});

  b.heartbeat->Announce(absl::OkStatus());
  b.heartbeat.reset();
  const absl::Time silent_since = SteadyNow();
  while (SteadyNow() - silent_since < 3 * kQuick.silence) {
    ASSERT_EQ(a.heartbeat->lost(), std::nullopt);
    std::this_thread::yield();
  }
  c.heartbeat->Announce(absl::InternalError("c"));

  EXPECT_EQ(a.Loss().rank, Rank{2});
}

TEST(HeartbeatTest, ADatagramOfAnotherJobIsNoSignOfLifeAndNoFailure) {
  Node a(0), b(1), c(2);
  a.Start({b.AsPeer(), c.AsPeer()}, kNeverSilent);
  b.Start({a.AsPeer()}, kNeverSilent, kJob + 1);
  c.Start({a.AsPeer()}, kNeverSilent);

  b.heartbeat->Announce(absl::InternalError("of another job"));
  c.heartbeat->Announce(absl::InternalError("of this job"));

  EXPECT_EQ(a.Loss().rank, Rank{2});
}

TEST(HeartbeatTest, ADeathIsToldToOtherHosts) {
  // Ranks 1 and 2 share a host; rank 0 has no other way to hear of rank 2.
  LifeCell cell_of_two{};
  Node a(0), b(1);
  Child two;
  a.Start({b.AsPeer(), {.rank = Rank{2}, .address = {}}}, kNeverSilent);
  b.Start({a.AsPeer(), two.AsPeer(2, cell_of_two)}, kNeverSilent);

  two.Kill();

  EXPECT_EQ(b.Loss().rank, Rank{2});
  const LostPeer lost = a.Loss();
  EXPECT_EQ(lost.rank, Rank{2});
  EXPECT_THAT(lost.how, HasSubstr("its process ended"));
}

TEST(HeartbeatTest, AProcessThatEndedBeforeItCouldBeWatchedIsLost) {
  LifeCell cell{};
  Node a(0);
  Child child;
  const LifePeer peer = child.AsPeer(1, cell);
  child.End();

  a.Start({peer}, kNeverSilent);

  EXPECT_THAT(a.Loss().how, HasSubstr("its process ended"));
}

TEST(HeartbeatTest, AProcessThatSaidGoodbyeMayEnd) {
  LifeCell cell{}, cell_of_other{};
  Node a(0);
  Child child, other;
  cell.state.store(LifeState::kLeft);
  a.Start({child.AsPeer(1, cell), other.AsPeer(2, cell_of_other)},
          kNeverSilent);

  child.Kill();
  a.WaitForBeats(a.cell.beats.load() + 20);
  ASSERT_EQ(a.heartbeat->lost(), std::nullopt);
  other.Kill();

  EXPECT_EQ(a.Loss().rank, Rank{2});
}

TEST(HeartbeatTest, WhoDiedIsNamedBeforeWhoFailedBecauseOfThat) {
  // A death may come after the look at processes and before that at the failure
  // which it caused: with many processes to look at it mostly does.
  for (int trial = 0; trial < 60; ++trial) {
    LifeCell cell_of_dying{}, cell_of_failing{};
    std::vector<LifeCell> cells(400);
    Node a(0);
    Child dying;
    std::vector<LifePeer> peers = {dying.AsPeer(1, cell_of_dying)};
    for (size_t i = 0; i < cells.size(); ++i) {
      peers.push_back({.rank = Rank{static_cast<int>(i) + 3},
                       .address = Heartbeat::OpenEndpoint(false).address,
                       .cell = &cells[i]});
    }
    peers.push_back({.rank = Rank{2}, .address = {}, .cell = &cell_of_failing});
    a.Start(peers, kNeverSilent);
    a.WaitForBeats(2);

    dying.Kill();
    cell_of_failing.code = static_cast<int32_t>(absl::StatusCode::kAborted);
    cell_of_failing.state.store(LifeState::kFailed);

    ASSERT_EQ(a.Loss().rank, Rank{1}) << "in trial " << trial;
  }
}

}  // namespace
}  // namespace portolan
