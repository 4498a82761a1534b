#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "experts/hash64.h"

namespace portolan {
namespace {

uint64_t HashOf(std::string_view text, uint64_t seed = 0) {
  return Hash64(std::as_bytes(std::span(text)), seed);
}

// Values of the reference implementation (libxxhash 0.8).
TEST(Hash64Test, IsXxh64) {
  EXPECT_EQ(HashOf(""), 0xEF46DB3751D8E999u);
  EXPECT_EQ(HashOf("a"), 0xD24EC4F1A98C6E5Bu);
  EXPECT_EQ(HashOf("abc"), 0x44BC2CF5AD770999u);
}

TEST(Hash64Test, SeesEveryByteAndTheSeed) {
  std::string text(101, 'x');
  const uint64_t hash = HashOf(text);
  for (char& c : text) {
    c = 'y';
    EXPECT_NE(HashOf(text), hash);
    c = 'x';
  }
  EXPECT_EQ(HashOf(text), hash);
  EXPECT_EQ(hash, 0xFB65B1D88F218076u);
  EXPECT_EQ(HashOf(text, 1), 0x5CF2F9DAA0E33EBFu);
}

}  // namespace
}  // namespace portolan
