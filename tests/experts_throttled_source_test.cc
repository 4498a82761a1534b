#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "experts/throttled_source.h"

namespace portolan {
namespace {

// A source that has every chunk after `read_time`, on a clock that only its own
// waits move.
class VirtualSource final : public ChunkedSource {
 public:
  VirtualSource(absl::Time& now, absl::Duration read_time)
      : now_(now), read_time_(read_time) {}

  std::string name() const override { return "virtual"; }
  size_t staging_bytes() const override { return 0; }
  int32_t NumChunks(ExpertId) const override { return 2; }
  int64_t LogicalBytes(ExpertId) const override { return 1; }
  uint64_t FileOrder(ExpertId) const override { return 0; }
  int queue_depth() const override { return 8; }
  void Submit(const ChunkRead& read) override {
    pending_.push_back({read.tag, now_ + read_time_});
  }
  void Wait(absl::Duration timeout, std::vector<ChunkDone>& done) override {
    absl::Time until = now_ + timeout;
    for (const auto& [tag, ready] : pending_) until = std::min(until, ready);
    ASSERT_NE(until, absl::InfiniteFuture()) << "would wait for ever";
    now_ = std::max(now_, until);
    std::erase_if(pending_, [&](const auto& chunk) {
      if (chunk.second > now_) return false;
      done.push_back({chunk.first, absl::OkStatus()});
      return true;
    });
  }
  void Wake() override {}
  absl::Status Finish(ExpertId, std::span<const std::byte>,
                      std::span<std::byte>) override {
    return absl::OkStatus();
  }

 private:
  absl::Time& now_;
  absl::Duration read_time_;
  std::vector<std::pair<uint64_t, absl::Time>> pending_;
};

class ThrottledSourceTest : public ::testing::Test {
 protected:
  // 1 byte per microsecond, 50 us; a load is charged 101 bytes.
  ThrottledSource Source(absl::Duration read_time) {
    return ThrottledSource(
        std::make_unique<VirtualSource>(now_, read_time),
        {.bytes_per_second = 1e6, .latency = absl::Microseconds(50)},
        /*load_bytes=*/101, [this] { return now_; });
  }

  void Submit(ThrottledSource& source, uint64_t tag, int32_t chunk,
              ReadClass read_class = ReadClass::kDemand,
              absl::Time requested = absl::InfiniteFuture()) {
    source.Submit({.id = {},
                   .chunk = chunk,
                   .read_class = read_class,
                   .landing = {},
                   .tag = tag,
                   .requested = requested});
  }

  // Microseconds at which the next chunk is done, and its tag.
  std::pair<double, uint64_t> Next(ThrottledSource& source) {
    std::vector<ChunkDone> done;
    while (done.empty()) source.Wait(absl::InfiniteDuration(), done);
    EXPECT_EQ(done.size(), 1u);
    return {absl::ToDoubleMicroseconds(now_ - absl::UnixEpoch()), done[0].tag};
  }

  absl::Time now_ = absl::UnixEpoch();
};

using Done = std::pair<double, uint64_t>;

TEST_F(ThrottledSourceTest, AFastSourceIsHeldToTheLink) {
  ThrottledSource source = Source(absl::Microseconds(1));
  Submit(source, 1, 0);
  Submit(source, 2, 1);

  EXPECT_EQ(Next(source), Done(50 + 50, 1));
  EXPECT_EQ(Next(source), Done(50 + 101, 2));
}

TEST_F(ThrottledSourceTest, ASlowSourceIsNotMadeFaster) {
  ThrottledSource source = Source(absl::Milliseconds(1));
  Submit(source, 1, 0);
  EXPECT_EQ(Next(source), Done(1000, 1));
}

TEST_F(ThrottledSourceTest, DemandGoesBeforeWaitingSpeculation) {
  ThrottledSource source = Source(absl::Microseconds(1));
  Submit(source, 1, 0, ReadClass::kSpeculative);
  std::vector<ChunkDone> done;
  source.Wait(absl::Microseconds(10), done);
  Submit(source, 2, 1, ReadClass::kSpeculative);
  Submit(source, 3, 0, ReadClass::kDemand);

  EXPECT_EQ(Next(source), Done(100, 1));
  EXPECT_EQ(Next(source), Done(200, 3));
  EXPECT_EQ(Next(source), Done(251, 2));
}

TEST_F(ThrottledSourceTest, TheLinkCountsFromTheRequest) {
  ThrottledSource source = Source(absl::Microseconds(1));
  now_ += absl::Microseconds(30);
  Submit(source, 1, 0, ReadClass::kDemand,
         absl::UnixEpoch() + absl::Microseconds(20));
  EXPECT_EQ(Next(source), Done(20 + 100, 1));
}

TEST_F(ThrottledSourceTest, ChunksMayShareATag) {
  ThrottledSource source = Source(absl::Microseconds(1));
  Submit(source, 7, 0);
  Submit(source, 7, 1);

  EXPECT_EQ(Next(source), Done(100, 7));
  EXPECT_EQ(Next(source), Done(151, 7));
}

TEST_F(ThrottledSourceTest, TellsItsLinkAndTakesOneSpeculativeChunk) {
  ThrottledSource source = Source(absl::Microseconds(1));
  EXPECT_EQ(source.link()->bytes_per_second, 1e6);
  EXPECT_EQ(source.speculative_depth(), 1);
  EXPECT_EQ(source.name(), "virtual at 1 MB/s,50us");
}

}  // namespace
}  // namespace portolan
