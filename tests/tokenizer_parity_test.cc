// Compares with what Hugging Face's tokenizers and SentencePiece said when
// tests/parity/tokenizer_parity.py asked them.

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/model/tokenizer/tokenizer.h"

namespace portolan {
namespace {

using nlohmann::json;

// A longer comparison than the committed one lies where this variable says.
std::string GoldenDir() {
  const char* dir = std::getenv("PORTOLAN_TOKENIZER_GOLDENS");
  return dir != nullptr ? dir : PORTOLAN_SOURCE_DIR "/tests/data/tokenizer";
}

json ReadGolden(const std::string& name) {
  std::ifstream file(GoldenDir() + "/" + name);
  EXPECT_TRUE(file.good()) << name;
  return json::parse(file);
}

std::vector<int32_t> Ids(const json& value) {
  return value.get<std::vector<int32_t>>();
}

std::string Text(const json& value) { return value.get<std::string>(); }

void ExpectEncodes(const Tokenizer& tokenizer, const json& golden) {
  const std::string text = Text(golden["text"]);

  const auto plain = tokenizer.Encode(text, /*add_special_tokens=*/false);
  const auto special = tokenizer.Encode(text, /*add_special_tokens=*/true);

  ASSERT_TRUE(plain.ok()) << plain.status();
  ASSERT_TRUE(special.ok()) << special.status();
  EXPECT_EQ(*plain, Ids(golden["ids"])) << json(text);
  EXPECT_EQ(*special, Ids(golden.value("with_special", golden["ids"])))
      << json(text);
}

std::string DecodeAsStream(const Tokenizer& tokenizer,
                           const std::vector<int32_t>& ids, bool skip_special) {
  StreamDecoder stream(tokenizer, skip_special);
  std::string text;
  for (const int32_t id : ids) {
    const std::string part(stream.Push(id));
    // dump() throws unless each part is whole characters.
    EXPECT_NO_THROW(static_cast<void>(json(part).dump()));
    text += part;
  }
  text += stream.Finish();
  return text;
}

void ExpectDecodes(const Tokenizer& tokenizer, const json& golden) {
  const std::vector<int32_t> ids = Ids(golden["ids"]);
  const std::string text = Text(golden["text"]);

  EXPECT_EQ(tokenizer.Decode(ids, /*skip_special=*/false), text)
      << golden["ids"];
  EXPECT_EQ(DecodeAsStream(tokenizer, ids, /*skip_special=*/false), text)
      << golden["ids"];
  EXPECT_EQ(tokenizer.Decode(ids, /*skip_special=*/true),
            Text(golden.value("without_special", golden["text"])))
      << golden["ids"];
}

void ExpectAgrees(const Tokenizer& tokenizer, const json& expected) {
  ASSERT_FALSE(expected["encode"].empty());
  for (const json& golden : expected["encode"]) {
    ExpectEncodes(tokenizer, golden);
  }
  for (const json& golden : expected["decode"]) {
    ExpectDecodes(tokenizer, golden);
  }
}

class TokenizerParityTest : public ::testing::TestWithParam<std::string> {};

TEST_P(TokenizerParityTest, EveryTokenizerOfTheFileAgrees) {
  const json golden = ReadGolden(GetParam());

  for (const auto& [name, config] : golden["tokenizers"].items()) {
    SCOPED_TRACE(name);
    json file = golden["shared"];
    file.update(config);
    const auto tokenizer = Tokenizer::FromJson(file.dump(), name);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    ExpectAgrees(**tokenizer, golden["cases"][name]);
  }
}

INSTANTIATE_TEST_SUITE_P(Files, TokenizerParityTest,
                         ::testing::Values("byte_level.json", "metaspace.json",
                                           "components.json"));

TEST(BundledTokenizerParityTest, TheBundledModelAgrees) {
  const json golden = ReadGolden("bundled.json");
  ASSERT_GT(golden["encode"].size(), 150u);

  const auto tokenizer =
      Tokenizer::Load(PORTOLAN_SOURCE_DIR "/models/tiny-moe");

  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectAgrees(**tokenizer, golden);
}

class SentencePieceParityTest : public ::testing::TestWithParam<std::string> {};

TEST_P(SentencePieceParityTest, TheModelFileAgrees) {
  const json golden = ReadGolden(GetParam() + "/expected.json");

  const auto tokenizer = Tokenizer::Load(GoldenDir() + "/" + GetParam());

  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectAgrees(**tokenizer, golden);
}

INSTANTIATE_TEST_SUITE_P(Models, SentencePieceParityTest,
                         ::testing::Values("sentencepiece_bpe",
                                           "sentencepiece_unigram"));

}  // namespace
}  // namespace portolan
