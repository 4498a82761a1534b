#include <gtest/gtest.h>

#include <string>

#include "cluster/coordinator/call_headers.h"

namespace portolan {
namespace {

constexpr char kTrace[] =
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

TEST(CallHeadersTest, ARequestIdIsPrintableAndShort) {
  EXPECT_EQ(SoundRequestId("a b~1"), "a b~1");
  EXPECT_EQ(SoundRequestId(std::string(128, 'x')), std::string(128, 'x'));
  EXPECT_EQ(SoundRequestId(std::string(129, 'x')), "");
  for (const char* bad : {"\x80\xff", "a\nb", "a\x7f", "caf\xc3\xa9"}) {
    EXPECT_EQ(SoundRequestId(bad), "") << bad;
  }
}

TEST(CallHeadersTest, ATraceparentHasTheFormOfTheW3C) {
  EXPECT_EQ(SoundTraceparent(kTrace), kTrace);
  EXPECT_EQ(SoundTraceparent(""), "");
  EXPECT_EQ(SoundTraceparent(std::string(kTrace) + "0"), "");
  EXPECT_EQ(SoundTraceparent("\x80\xff"), "");
  for (const size_t at : {0, 2, 10, 35, 54}) {
    std::string bad = kTrace;
    bad[at] = '\xff';
    EXPECT_EQ(SoundTraceparent(bad), "") << at;
  }
}

}  // namespace
}  // namespace portolan
