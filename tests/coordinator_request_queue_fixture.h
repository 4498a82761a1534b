#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "cluster/coordinator/request_queue.h"

namespace portolan {

// A queue with a clock of its own, what comes to it, and one step at a time.
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

}  // namespace portolan
