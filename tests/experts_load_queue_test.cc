#include <gtest/gtest.h>

#include <vector>

#include "experts/load_queue.h"

namespace portolan {
namespace {

constexpr auto kDemand = ReadClass::kDemand;
constexpr auto kSpeculative = ReadClass::kSpeculative;
using Outcome = LoadQueue::Outcome;

LoadQueue::Limits Limits() {
  return {.num_slots = 6,
          .num_staging = 0,
          .depth = 2,
          .speculative_depth = 1,
          .max_attempts = 2};
}

// The slot of the next chunk, -1 for none.
int32_t Next(LoadQueue& queue) {
  const auto chunk = queue.Next();
  return chunk ? chunk->slot : -1;
}

Outcome Done(LoadQueue& queue, int32_t slot,
             absl::Status status = absl::OkStatus()) {
  return queue.OnChunkDone(slot, status);
}

TEST(LoadQueueTest, DemandLoadsGoInTheOrderOfTheirArrivalUpToTheDepth) {
  LoadQueue queue(Limits());
  queue.Add(3, {0, 0}, kDemand, 2);
  queue.Add(1, {0, 1}, kDemand, 1);

  EXPECT_EQ(Next(queue), 3);
  EXPECT_EQ(Next(queue), 3);
  EXPECT_EQ(Next(queue), -1) << "the depth is 2";
  EXPECT_EQ(Done(queue, 3), Outcome::kUnderWay);
  EXPECT_EQ(Next(queue), 1);
  EXPECT_EQ(Done(queue, 3), Outcome::kLanded);
  EXPECT_EQ(Done(queue, 1), Outcome::kLanded);
}

TEST(LoadQueueTest, SpeculationWaitsWhileDemandIsUnderWay) {
  LoadQueue queue(Limits());
  queue.Add(0, {1, 0}, kSpeculative, 3);
  EXPECT_EQ(Next(queue), 0);
  queue.Add(1, {0, 0}, kDemand, 1);

  EXPECT_EQ(Next(queue), 1);
  Done(queue, 0);
  EXPECT_EQ(Next(queue), -1);
  Done(queue, 1);
  EXPECT_EQ(Next(queue), 0);
}

TEST(LoadQueueTest, APromotedLoadGoesFirst) {
  LoadQueue queue(Limits());
  queue.Add(0, {1, 0}, kSpeculative, 3);
  EXPECT_EQ(Next(queue), 0);
  queue.Add(1, {0, 0}, kDemand, 1);

  EXPECT_TRUE(queue.Promote(0));
  EXPECT_FALSE(queue.Promote(0));

  EXPECT_EQ(queue.num_speculative(), 0);
  EXPECT_EQ(Next(queue), 0);
  Done(queue, 0);
  EXPECT_EQ(Next(queue), 0);
}

TEST(LoadQueueTest, AskedForSpeculationOnlyWhenItsFirstChunkCouldGo) {
  LoadQueue queue(Limits());
  EXPECT_TRUE(queue.CanSpeculate());
  queue.Add(0, {1, 0}, kSpeculative, 2);
  EXPECT_FALSE(queue.CanSpeculate()) << "one waits";
  Next(queue);
  Done(queue, 0);
  Next(queue);
  EXPECT_FALSE(queue.CanSpeculate()) << "one is under way";
  Done(queue, 0);
  EXPECT_TRUE(queue.CanSpeculate());
  queue.Add(1, {0, 0}, kDemand, 1);
  EXPECT_FALSE(queue.CanSpeculate());
}

TEST(LoadQueueTest, AFailedDemandLoadStartsAnewAndThenFails) {
  LoadQueue queue(Limits());
  queue.Add(0, {0, 0}, kDemand, 2);
  Next(queue);
  Next(queue);

  EXPECT_EQ(Done(queue, 0, absl::UnavailableError("EIO")), Outcome::kUnderWay);
  EXPECT_EQ(Done(queue, 0), Outcome::kUnderWay);
  EXPECT_EQ(queue.num_retries(), 1);
  EXPECT_EQ(queue.Next()->chunk, 0);
  EXPECT_EQ(Done(queue, 0, absl::UnavailableError("EIO")), Outcome::kFailed);
  EXPECT_EQ(queue.num_loads(), 0);
}

TEST(LoadQueueTest, AFailedSpeculativeLoadAndDataLossAreFinal) {
  LoadQueue queue(Limits());
  queue.Add(0, {0, 0}, kSpeculative, 1);
  Next(queue);
  EXPECT_EQ(Done(queue, 0, absl::UnavailableError("EIO")), Outcome::kFailed);
  queue.Add(0, {0, 0}, kDemand, 1);
  Next(queue);
  EXPECT_EQ(Done(queue, 0, absl::DataLossError("end")), Outcome::kFailed);
}

TEST(LoadQueueTest, ALoadKeepsItsStagingUntilItEnds) {
  LoadQueue::Limits limits = Limits();
  limits.num_staging = 1;
  LoadQueue queue(limits);
  queue.Add(0, {0, 0}, kDemand, 1);
  queue.Add(1, {0, 1}, kDemand, 1);

  EXPECT_EQ(queue.Next()->staging, 0);
  EXPECT_EQ(Next(queue), -1);
  EXPECT_EQ(Done(queue, 0), Outcome::kLanded);
  EXPECT_EQ(Next(queue), -1) << "not made ready yet";
  queue.Remove(0);
  EXPECT_EQ(queue.Next()->staging, 0);
}

TEST(LoadQueueTest, DemandWithoutStagingLetsASpeculativeLoadEnd) {
  LoadQueue::Limits limits = Limits();
  limits.num_staging = 1;
  LoadQueue queue(limits);
  queue.Add(0, {1, 0}, kSpeculative, 2);
  EXPECT_EQ(Next(queue), 0);
  queue.Add(1, {0, 0}, kDemand, 1);
  EXPECT_EQ(Next(queue), -1);
  Done(queue, 0);

  EXPECT_EQ(Next(queue), 0) << "it holds the only buffer";
  EXPECT_EQ(Done(queue, 0), Outcome::kLanded);
  queue.Remove(0);
  EXPECT_EQ(Next(queue), 1);
}

}  // namespace
}  // namespace portolan
