#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/model/tokenizer/regex.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// The spans of `text`, matches in brackets.
std::vector<std::string> Spans(const std::string& pattern,
                               const std::string& text) {
  const auto regex = Regex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status();
  std::vector<TextSpan> spans;
  const absl::Status status = regex->FindSpans(text, spans);
  EXPECT_TRUE(status.ok()) << status;
  std::vector<std::string> parts;
  for (const TextSpan& span : spans) {
    const std::string part = text.substr(span.begin, span.end - span.begin);
    parts.push_back(span.is_match ? "[" + part + "]" : part);
  }
  return parts;
}

TEST(RegexTest, CoversTheTextWithMatchesAndGaps) {
  EXPECT_THAT(Spans("b+", "abbcb"), ElementsAre("a", "[bb]", "c", "[b]"));
  EXPECT_THAT(Spans("x", "abc"), ElementsAre("abc"));
  EXPECT_THAT(Spans("x", ""), ElementsAre(""));
}

TEST(RegexTest, AnEmptyMatchRightBehindAMatchDoesNotCount) {
  EXPECT_THAT(Spans("b*", "abc"), ElementsAre("[]", "a", "[b]", "c", "[]"));
  EXPECT_THAT(Spans("", "\u00e9"), ElementsAre("[]", "\u00e9", "[]"));
}

TEST(RegexTest, KnowsUnicodeClassesAndLookAhead) {
  EXPECT_THAT(Spans("\\p{L}+", "\u6d77a1"), ElementsAre("[\u6d77a]", "1"));
  EXPECT_THAT(Spans("\\s+(?!\\S)|\\s+", "a   b"),
              ElementsAre("a", "[  ]", "[ ]", "b"));
  EXPECT_THAT(Spans("(?i:'LL)", "we'll"), ElementsAre("we", "['ll]"));
}

TEST(RegexTest, WhiteSpaceOfAnyLengthIsFound) {
  const std::string spaces(1'000'000, ' ');

  EXPECT_THAT(Spans("\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+", spaces),
              ElementsAre("[" + spaces + "]"));
}

TEST(RegexTest, RefusesWhatItCannotCompile) {
  EXPECT_TRUE(absl::IsInvalidArgument(Regex::Compile("(a").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Regex::Compile("a**{3,1}[").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      Regex::Compile(std::string(5000, '(') + std::string(5000, ')'))
          .status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      Regex::Compile(std::string(20000, 'a')).status()));
}

}  // namespace
}  // namespace portolan
