#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/model/tokenizer/json_tokenizer.h"

namespace portolan {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json SmallTokenizer() {
  return json::parse(R"({
    "model": {"type": "BPE",
              "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4},
              "merges": ["a b", ["ab", "c"]]},
    "added_tokens": [{"id": 5, "content": "<s>", "special": true}]})");
}

// SmallTokenizer() with the value at `pointer` put in the place of its own.
json With(const std::string& pointer, const std::string& value) {
  json file = SmallTokenizer();
  file[json::json_pointer(pointer)] = json::parse(value);
  return file;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Make(const json& file) {
  return MakeJsonTokenizer(file.dump(), "dir/tokenizer.json");
}

// What Make() says of a file that it must refuse.
std::string Refusal(const json& file) {
  const auto tokenizer = Make(file);
  EXPECT_TRUE(absl::IsInvalidArgument(tokenizer.status()))
      << tokenizer.status();
  return std::string(tokenizer.status().message());
}

std::string RefusalOfText(const std::string& text) {
  const auto tokenizer = MakeJsonTokenizer(text, "dir/tokenizer.json");
  EXPECT_TRUE(absl::IsInvalidArgument(tokenizer.status()))
      << tokenizer.status();
  return std::string(tokenizer.status().message());
}

auto NamesFileAnd(const std::string& path, const std::string& what) {
  return AllOf(HasSubstr("dir/tokenizer.json: "), HasSubstr(path),
               HasSubstr(what));
}

TEST(JsonTokenizerTest, ReadsMergesAsStringsAndAsPairs) {
  const auto tokenizer = Make(SmallTokenizer());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();

  const auto ids = (*tokenizer)->Encode("abcab<s>ba", false);

  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(*ids, ElementsAre(4, 3, 5, 1, 0));
}

TEST(JsonTokenizerTest, RefusesAComponentItDoesNotKnowByNameAndPath) {
  const std::string list = R"([{"type": "NFC"}, {"type": "Precompiled"}])";
  EXPECT_THAT(Refusal(With("/normalizer", R"({"type": "Sequence",
                                              "normalizers": )" +
                                              list + "}")),
              NamesFileAnd("normalizer.normalizers[1]: ", "\"Precompiled\""));
  EXPECT_THAT(Refusal(With("/pre_tokenizer", R"({"type": "Unicodes"})")),
              NamesFileAnd("pre_tokenizer: ", "\"Unicodes\""));
  EXPECT_THAT(Refusal(With("/post_processor", R"({"type": "Bert"})")),
              NamesFileAnd("post_processor: ", "\"Bert\""));
  EXPECT_THAT(Refusal(With("/decoder", R"({"type": "CTC"})")),
              NamesFileAnd("decoder: ", "\"CTC\""));
  EXPECT_THAT(Refusal(With("/model/type", R"("Unigram")")),
              NamesFileAnd("model: ", "\"Unigram\""));
}

TEST(JsonTokenizerTest, NamesAnInvalidRegularExpression) {
  const json file = With("/pre_tokenizer", R"({"type": "Split",
      "pattern": {"Regex": "(a"}, "behavior": "Isolated"})");

  EXPECT_THAT(Refusal(file),
              NamesFileAnd("pre_tokenizer.pattern.Regex: ", "\"(a\""));
}

TEST(JsonTokenizerTest, RefusesIdsThatAreNoIds) {
  for (const char* id : {"-1", "1.5", "\"7\"", "null", "16777216", "1e30",
                         "99999999999999999999", "[]", "true"}) {
    EXPECT_THAT(Refusal(With("/model/vocab/a", id)),
                NamesFileAnd("model.vocab: ", "\"a\""));
    EXPECT_THAT(Refusal(With("/added_tokens/0/id", id)),
                NamesFileAnd("added_tokens[0]", "id"));
  }
}

TEST(JsonTokenizerTest, RefusesAnIdThatStandsForTwoTokens) {
  EXPECT_THAT(Refusal(With("/model/vocab/a", "1")),
              NamesFileAnd("model.vocab: ", "id 1 stands for both"));
  EXPECT_THAT(Refusal(With("/added_tokens/0/id", "4")),
              NamesFileAnd("added_tokens[0]: ", "\"abc\""));
  EXPECT_THAT(Refusal(With("/added_tokens/0/content", "\"abc\"")),
              NamesFileAnd("added_tokens[0]: ", "4 in model.vocab"));
  EXPECT_THAT(
      Refusal(With("/added_tokens/1", R"({"id": 6, "content": "<s>"})")),
      NamesFileAnd("added_tokens[1]: ", "already taken"));
}

TEST(JsonTokenizerTest, RefusesMergesThatLeadNowhere) {
  EXPECT_THAT(Refusal(With("/model/merges/0", "\"b a\"")),
              NamesFileAnd("model.merges[0]: ", "\"ba\" is not in vocab"));
  for (const char* merge : {"\"ab\"", "\"a b c\"", "[\"a\"]", "7", "[1, 2]"}) {
    EXPECT_THAT(Refusal(With("/model/merges/1", merge)),
                NamesFileAnd("model.merges[1]", ""));
  }
}

TEST(JsonTokenizerTest, RefusesDropoutWhichIsForTraining) {
  EXPECT_TRUE(Make(With("/model/dropout", "null")).ok());
  EXPECT_THAT(Refusal(With("/model/dropout", "0.1")),
              NamesFileAnd("model.dropout: ", "training"));
}

TEST(JsonTokenizerTest, RefusesATextThatIsNoJsonOfATokenizer) {
  const std::string whole = SmallTokenizer().dump();
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_THAT(RefusalOfText(whole.substr(0, length)),
                HasSubstr("dir/tokenizer.json: "));
  }
  EXPECT_THAT(RefusalOfText(std::string(1'000'000, '[')),
              HasSubstr("nested deeper"));
  EXPECT_THAT(RefusalOfText("{\"model\": \"\xff\"}"), HasSubstr("no valid"));
  EXPECT_THAT(RefusalOfText("[]"), HasSubstr("object"));
  EXPECT_THAT(RefusalOfText("{}"), HasSubstr("\"model\" is missing"));
}

TEST(JsonTokenizerTest, RefusesAValueOfAnotherTypeWhereverItStands) {
  json file = SmallTokenizer();
  file["normalizer"] = {{"type", "Prepend"}, {"prepend", "_"}};
  file["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "_"}};
  file["decoder"] = {
      {"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}};
  ASSERT_TRUE(Make(file).ok());
  const json flat = file.flatten();

  for (const auto& [pointer, value] : flat.items()) {
    json bad = file;
    bad[json::json_pointer(pointer)] = {{"an", "object"}};
    EXPECT_THAT(Refusal(bad), HasSubstr("dir/tokenizer.json: ")) << pointer;
  }
}

TEST(JsonTokenizerTest, SaysWhichUnknownTokenIsMissingWhenATextNeedsIt) {
  const auto tokenizer = Make(With("/model/unk_token", "\"<unk>\""));
  ASSERT_TRUE(tokenizer.ok());

  EXPECT_TRUE((*tokenizer)->Encode("abc", false).ok());
  EXPECT_THAT(
      std::string((*tokenizer)->Encode("xyz", false).status().message()),
      HasSubstr("\"<unk>\""));
}

TEST(JsonTokenizerTest, GivesUpOnARegularExpressionWithoutBound) {
  const auto tokenizer = Make(With("/pre_tokenizer", R"({"type": "Split",
      "pattern": {"Regex": "(a|a)+$"}, "behavior": "Isolated"})"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();

  const auto ids = (*tokenizer)->Encode(std::string(64, 'a') + "b", false);

  EXPECT_TRUE(absl::IsResourceExhausted(ids.status())) << ids.status();
}

}  // namespace
}  // namespace portolan
