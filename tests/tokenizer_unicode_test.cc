#include <gtest/gtest.h>

#include <string>

#include "runtime/model/tokenizer/unicode.h"

namespace portolan {
namespace {

std::string Repair(std::string_view bytes) {
  Utf8Repair repair;
  std::string text;
  for (const char byte : bytes) repair.Push(static_cast<uint8_t>(byte), text);
  repair.Finish(text);
  return text;
}

TEST(UnicodeTest, EveryCodePointIsReadAsItIsWritten) {
  for (char32_t code = 0; code <= 0x10FFFF; ++code) {
    std::string text;
    AppendUtf8(code, text);
    const bool is_surrogate = code >= 0xD800 && code <= 0xDFFF;

    ASSERT_EQ(FindInvalidUtf8(text).has_value(), is_surrogate)
        << static_cast<uint32_t>(code);
    if (is_surrogate) continue;
    ASSERT_TRUE(CharAt(text, 0).code == code);
    ASSERT_EQ(CharAt(text, 0).num_bytes, text.size());
    ASSERT_EQ(Repair(text), text);
  }
}

TEST(UnicodeTest, FindsTheFirstInvalidByte) {
  EXPECT_EQ(FindInvalidUtf8("plain \u00e9 \u2693"), std::nullopt);
  EXPECT_EQ(FindInvalidUtf8("ab\x80"), 2u);              // lone continuation
  EXPECT_EQ(FindInvalidUtf8("\xC0\xAF"), 0u);            // overlong
  EXPECT_EQ(FindInvalidUtf8("a\xE2\x9A"), 1u);           // cut off
  EXPECT_EQ(FindInvalidUtf8("a\xF4\x90\x80\x80"), 1u);   // past U+10FFFF
  EXPECT_EQ(FindInvalidUtf8("\u00e9\xED\xA0\x80"), 2u);  // surrogate
}

TEST(UnicodeTest, EachMaximalPartOfABrokenSequenceIsRepairedOnce) {
  // The example of table 3-8 of the Unicode Standard, version 15.
  EXPECT_EQ(Repair("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
            "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
}

TEST(UnicodeTest, NormalFormsComposeAndDecompose) {
  EXPECT_EQ(ToNormalForm(NormalForm::kNfc, "e\u0301"), "\u00e9");
  EXPECT_EQ(ToNormalForm(NormalForm::kNfd, "\u00e9"), "e\u0301");
  EXPECT_EQ(ToNormalForm(NormalForm::kNfkc, "\ufb01\u2460"), "fi1");
  EXPECT_EQ(ToNormalForm(NormalForm::kNfkd, "\u00bd"), "1\u20442");
}

}  // namespace
}  // namespace portolan
