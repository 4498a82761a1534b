// StreamDecoder: text comes as soon as it is certain, and not before.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/model/tokenizer/tokenizer.h"

namespace portolan {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;

// A tokenizer of `tokens`, with their places as ids, and `decoder`.
std::unique_ptr<Tokenizer> Make(const std::vector<std::string>& tokens,
                                const std::string& decoder) {
  json file;
  file["model"] = {{"type", "BPE"}, {"merges", json::array()}};
  for (size_t id = 0; id < tokens.size(); ++id) {
    file["model"]["vocab"][tokens[id]] = id;
  }
  file["decoder"] = json::parse(decoder);
  file["added_tokens"] =
      json::parse(R"([{"id": 1000, "content": "<end>", "special": true}])");
  auto tokenizer = Tokenizer::FromJson(file.dump(), "tokenizer.json");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

// What Push() returns for each id, and Finish() at the end.
std::vector<std::string> Parts(const Tokenizer& tokenizer,
                               const std::vector<int32_t>& ids,
                               bool skip_special = false) {
  StreamDecoder stream(tokenizer, skip_special);
  std::vector<std::string> parts;
  for (const int32_t id : ids) parts.emplace_back(stream.Push(id));
  parts.emplace_back(stream.Finish());
  return parts;
}

constexpr char kByteLevel[] = R"({"type": "ByteLevel"})";
constexpr char kLlama[] = R"({"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
    {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})";

TEST(StreamDecoderTest, ByteLevelHoldsBackOnlyUnfinishedCharacters) {
  // The bytes of U+2693 are E2 9A 93.
  const auto tokenizer =
      Make({"a", "\u0120b", "\u00e2", "\u013c", "\u0135"}, kByteLevel);

  EXPECT_THAT(Parts(*tokenizer, {0, 1, 2, 3, 4, 0}),
              ElementsAre("a", " b", "", "", "\u2693", "a", ""));
  EXPECT_THAT(Parts(*tokenizer, {2, 3, 0}), ElementsAre("", "", "\uFFFDa", ""));
  EXPECT_THAT(Parts(*tokenizer, {0, 2}), ElementsAre("a", "", "\uFFFD"));
}

TEST(StreamDecoderTest, StripsTheSpaceInFrontOfTheFirstTokenOnly) {
  const auto tokenizer = Make({"\u2581a", "\u2581", "b"}, kLlama);

  EXPECT_THAT(Parts(*tokenizer, {0, 0, 2}), ElementsAre("a", " a", "b", ""));
  EXPECT_THAT(Parts(*tokenizer, {1, 1, 2}), ElementsAre("", " ", "b", ""));
  EXPECT_THAT(Parts(*tokenizer, {2, 0}), ElementsAre("b", " a", ""));
}

TEST(StreamDecoderTest, ByteTokensWaitForTheEndOfTheirRun) {
  const auto tokenizer =
      Make({"a", "<0xE2>", "<0x9A>", "<0x93>", "<0x41>"}, kLlama);

  EXPECT_THAT(Parts(*tokenizer, {1, 2, 3, 0}),
              ElementsAre("", "", "", "\u2693a", ""));
  EXPECT_THAT(Parts(*tokenizer, {4, 1, 2}),
              ElementsAre("", "", "", "\uFFFD\uFFFD\uFFFD"));
}

TEST(StreamDecoderTest, MetaspaceDropsTheMarkOfTheFirstToken) {
  const auto tokenizer = Make({"\u2581a", "\u2581b"},
                              R"({"type": "Metaspace", "replacement": "\u2581",
               "prepend_scheme": "always", "split": true})");

  EXPECT_THAT(Parts(*tokenizer, {0, 1, 0}), ElementsAre("a", " b", " a", ""));
}

TEST(StreamDecoderTest, AReplacedStringMaySpreadOverFusedTokens) {
  const auto tokenizer = Make({"x", "y", "z"}, R"({"type": "Sequence",
      "decoders": [{"type": "Fuse"}, {"type": "Replace",
      "pattern": {"String": "xyz"}, "content": "-"}]})");

  EXPECT_THAT(Parts(*tokenizer, {0, 1, 2, 0, 0, 1, 0}),
              ElementsAre("", "", "-", "", "x", "", "xy", "x"));
}

TEST(StreamDecoderTest, StripKeepsBackWhatTheEndMayStrip) {
  const auto tokenizer = Make({"_", "a"}, R"({"type": "Sequence",
      "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": "_",
      "start": 0, "stop": 2}]})");

  EXPECT_THAT(Parts(*tokenizer, {1, 0, 0, 0, 1, 0}),
              ElementsAre("a", "", "", "_", "__a", "", ""));
}

TEST(StreamDecoderTest, SkipsSpecialTokensAndIdsOutsideTheVocabulary) {
  const auto tokenizer = Make({"a"}, kByteLevel);

  EXPECT_THAT(Parts(*tokenizer, {0, 1000, -1, 999, 1 << 30, 0}, true),
              ElementsAre("a", "", "", "", "", "a", ""));
  EXPECT_THAT(Parts(*tokenizer, {0, 1000}, false),
              ElementsAre("a", "<end>", ""));
}

TEST(StreamDecoderTest, WithoutADecoderJoinsTokensBySpaces) {
  const auto tokenizer = Make({"a", "b"}, "null");

  EXPECT_THAT(Parts(*tokenizer, {0, 1, 0}), ElementsAre("a", " b", " a", ""));
}

}  // namespace
}  // namespace portolan
