#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launcher/prompts.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(PromptsTest, ReadsTextTokensAndWishes) {
  const auto prompts = ParsePrompts(
      R"({"id":"a","prompt":"Hi","max_tokens":5,"temperature":0,"stop":"x"})"
      "\n\n"
      R"({"prompt_tokens":[1,2],"top_p":0.5,"seed":18446744073709551615,"domain":"mine"})",
      "p.jsonl");

  ASSERT_TRUE(prompts.ok()) << prompts.status();
  ASSERT_EQ(prompts->size(), 2);
  EXPECT_EQ((*prompts)[0].id, "a");
  EXPECT_EQ((*prompts)[0].wishes.max_tokens, 5);
  EXPECT_EQ((*prompts)[0].wishes.temperature, 0);
  EXPECT_THAT(*(*prompts)[0].wishes.stop, ElementsAre("x"));
  EXPECT_EQ((*prompts)[1].id, "1");
  EXPECT_THAT(*(*prompts)[1].tokens, ElementsAre(1, 2));
  EXPECT_EQ((*prompts)[1].wishes.seed, ~uint64_t{0});
}

TEST(PromptsTest, ErrorsNameFileLineAndField) {
  const struct {
    const char* text;
    const char* named;
  } cases[] = {
      {"{\"prompt\":\"a\"}\n{\"prompt\":7}", "line 2: field \"prompt\""},
      {"{\"id\":\"a\"}", "\"prompt\""},
      {"nonsense", "line 1"},
      {"[1]", "line 1"},
      {"{\"prompt\":\"a\",\"top_k\":1.5}", "\"top_k\""},
      {"{\"prompt\":\"a\",\"max_tokens\":1e30}", "\"max_tokens\""},
      {"{\"prompt\":\"a\",\"seed\":-1}", "\"seed\""},
      {"{\"prompt\":\"a\",\"stop\":[1]}", "\"stop\""},
      {"{\"prompt_tokens\":[1,\"b\"]}", "\"prompt_tokens\""},
      {"\n", "no prompt"}};
  for (const auto& bad : cases) {
    const auto prompts = ParsePrompts(bad.text, "p.jsonl");
    ASSERT_FALSE(prompts.ok()) << bad.text;
    EXPECT_THAT(std::string(prompts.status().message()), HasSubstr("p.jsonl"));
    EXPECT_THAT(std::string(prompts.status().message()), HasSubstr(bad.named));
  }
}

TEST(PromptsTest, AWishOfThePromptGoesBeforeTheCommandLine) {
  SamplingWishes own;
  own.top_k = 3;
  SamplingWishes command_line;
  command_line.top_k = 9;
  command_line.temperature = 0.5;

  const SamplingWishes merged = Merge(own, command_line);

  EXPECT_EQ(merged.top_k, 3);
  EXPECT_EQ(merged.temperature, 0.5);
  EXPECT_FALSE(merged.seed.has_value());
}

}  // namespace
}  // namespace portolan
