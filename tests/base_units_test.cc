#include <gtest/gtest.h>

#include "runtime/base/units.h"

namespace portolan {
namespace {

TEST(UnitsTest, ReadsDecimalAndBinaryUnits) {
  EXPECT_EQ(*ParseBytes("4096"), 4096);
  EXPECT_EQ(*ParseBytes("64MiB"), int64_t{64} << 20);
  EXPECT_EQ(*ParseBytes("1.5GB"), 1'500'000'000);
  EXPECT_EQ(*ParseBytes("2 gib"), int64_t{2} << 30);
}

TEST(UnitsTest, RefusesWhatIsNoSizeAndQuotesIt) {
  for (const char* text :
       {"", "MiB", "12 parsecs", "-1", "1e3", "9999999TiB"}) {
    const auto bytes = ParseBytes(text);
    ASSERT_FALSE(bytes.ok()) << text;
    EXPECT_NE(bytes.status().message().find(text), std::string::npos);
  }
}

TEST(UnitsTest, FormatsForPeople) {
  EXPECT_EQ(FormatBytes(512), "512 B");
  EXPECT_EQ(FormatBytes(uint64_t{3} << 30), "3.0 GiB");
}

}  // namespace
}  // namespace portolan
