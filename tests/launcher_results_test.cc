#include <gtest/gtest.h>

#include <string>

#include "launcher/results.h"

namespace portolan {
namespace {

TEST(InOrderPrinterTest, PrintsByRisingIndexWhateverComesFirst) {
  std::string printed;
  InOrderPrinter printer([&](const std::string& text) { printed += text; });

  printer.AddEncoded(EncodeResult(2, "c") + EncodeResult(0, "a"));
  EXPECT_EQ(printed, "a");
  printer.Add(1, "b");

  EXPECT_EQ(printed, "abc");
  EXPECT_EQ(printer.printed(), 3);
}

TEST(InOrderPrinterTest, CountsNoneBehindAResultThatDidNotCome) {
  InOrderPrinter printer([](const std::string&) {});

  for (const int index : {0, 2, 3}) printer.Add(index, "text");

  EXPECT_EQ(printer.printed(), 1);
}

}  // namespace
}  // namespace portolan
