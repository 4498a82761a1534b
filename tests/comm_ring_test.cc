#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "comm/ring.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/steady_now.h"

namespace portolan {
namespace {

constexpr size_t kCapacity = 64;

class RingTest : public ::testing::Test {
 protected:
  AlignedBuffer memory_ =
      AlignedBuffer::Allocate(Ring::BytesFor(kCapacity)).value();
  Ring writer_{memory_.data(), kCapacity};
  Ring reader_{memory_.data(), kCapacity};
};

std::vector<std::byte> Bytes(size_t size, int first) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<std::byte>(static_cast<size_t>(first) + i);
  }
  return bytes;
}

TEST_F(RingTest, TakesWhatFitsAndNoMore) {
  EXPECT_EQ(writer_.Write(Bytes(40, 0)), 40u);
  EXPECT_EQ(writer_.Write(Bytes(40, 40)), 24u);
  EXPECT_FALSE(writer_.HasRoom());
  EXPECT_EQ(writer_.Write(Bytes(1, 0)), 0u);
}

TEST_F(RingTest, GivesBytesBackInOrderAcrossTheEnd) {
  std::vector<std::byte> out(50);
  writer_.Write(Bytes(50, 0));
  ASSERT_EQ(reader_.Read(out), 50u);

  writer_.Write(Bytes(50, 100));
  ASSERT_TRUE(reader_.HasData());
  ASSERT_EQ(reader_.Read(out), 50u);

  EXPECT_EQ(out, Bytes(50, 100));
  EXPECT_FALSE(reader_.HasData());
}

TEST_F(RingTest, CarriesALongStreamBetweenThreads) {
  constexpr size_t kTotal = 100'000;
  const std::vector<std::byte> sent = Bytes(kTotal, 3);
  std::vector<std::byte> got(kTotal);

  std::jthread writing([&] {
    for (size_t done = 0; done < kTotal;) {
      done += writer_.Write(std::span(sent).subspan(done));
      if (!writer_.HasRoom()) std::this_thread::yield();
    }
  });
  for (size_t done = 0; done < kTotal;) {
    done += reader_.Read(std::span(got).subspan(done));
    if (!reader_.HasData()) std::this_thread::yield();
  }

  EXPECT_EQ(got, sent);
}

TEST(BellTest, ARingAfterPrepareEndsTheSleepAtOnce) {
  AlignedBuffer memory = AlignedBuffer::Allocate(sizeof(Bell)).value();
  Bell& bell = *reinterpret_cast<Bell*>(memory.data());
  const uint32_t seen = bell.Prepare();

  const absl::Time before = SteadyNow();
  bell.RingIfAsleep();
  bell.Sleep(seen, 60'000'000);  // a minute, were the ring lost

  EXPECT_LT(SteadyNow() - before, absl::Seconds(50));
}

}  // namespace
}  // namespace portolan
