#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "runtime/base/aligned_buffer.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PORTOLAN_ASAN
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define PORTOLAN_ASAN
#endif

namespace portolan {
namespace {

constexpr size_t kSizes[] = {1, 4095, 4096, 4097, (size_t{2} << 20) + 1};

TEST(AlignedBufferTest, IsZeroedAndBeginsAtAPage) {
  for (const size_t size : kSizes) {
    const AlignedBuffer buffer = *AlignedBuffer::Allocate(size);

    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 4096, 0u);
    EXPECT_TRUE(std::ranges::all_of(
        buffer.bytes(), [](std::byte b) { return b == std::byte{0}; }));
  }
  EXPECT_EQ(AlignedBuffer::Allocate(0)->size(), 0u);
}

TEST(AlignedBufferTest, MovesItsMemory) {
  AlignedBuffer from = *AlignedBuffer::Allocate(5000);
  std::byte* const data = from.data();
  from.bytes()[4999] = std::byte{7};

  const AlignedBuffer to = std::move(from);

  EXPECT_EQ(to.data(), data);
  EXPECT_EQ(to.bytes()[4999], std::byte{7});
}

TEST(AlignedBufferTest, MoreThanThereIsIsAnError) {
  EXPECT_EQ(AlignedBuffer::Allocate(size_t{1} << 60).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(AlignedBufferDeathTest, AddressSanitizerSeesReadsBehindTheEnd) {
#ifdef PORTOLAN_ASAN
  for (const size_t size : kSizes) {
    const AlignedBuffer buffer = *AlignedBuffer::Allocate(size);
    volatile const std::byte* const end = buffer.data() + size;
    EXPECT_DEATH(std::exit(static_cast<int>(*end)), "AddressSanitizer");
    EXPECT_EQ(buffer.bytes().back(), std::byte{0});
  }
  // Memory that was given back may be mapped again.
  for (int i = 0; i < 100; ++i) {
    const AlignedBuffer small = *AlignedBuffer::Allocate(1);
    AlignedBuffer large = *AlignedBuffer::Allocate(8192);
    std::ranges::fill(large.bytes(), std::byte{1});
  }
#else
  GTEST_SKIP() << "this build has no AddressSanitizer";
#endif
}

}  // namespace
}  // namespace portolan
