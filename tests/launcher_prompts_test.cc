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

TEST(PromptsTest, EveryWishIsRead) {
  const auto prompts = ParsePrompts(
      R"({"prompt":"a","n":1,"metadata":{"mine":[1]},"top_k":4,"min_p":0.25,)"
      R"("stop":["x","y"],"stop_token_ids":[7,8],"ignore_eos":true,)"
      R"("repetition_penalty":1.5,"presence_penalty":-1,)"
      R"("frequency_penalty":0.5})",
      "p.jsonl");

  ASSERT_TRUE(prompts.ok()) << prompts.status();
  const Prompt& prompt = prompts->front();
  EXPECT_EQ(prompt.where, "p.jsonl, line 1");
  EXPECT_EQ(prompt.wishes.top_k, 4);
  EXPECT_EQ(prompt.wishes.min_p, 0.25);
  EXPECT_THAT(*prompt.wishes.stop, ElementsAre("x", "y"));
  EXPECT_THAT(*prompt.wishes.stop_token_ids, ElementsAre(7, 8));
  EXPECT_EQ(prompt.wishes.ignore_eos, true);
  EXPECT_EQ(prompt.wishes.repetition_penalty, 1.5);
  EXPECT_EQ(prompt.wishes.presence_penalty, -1);
  EXPECT_EQ(prompt.wishes.frequency_penalty, 0.5);
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
      {"{\"prompt\":\"a\",\"prompt_tokens\":[1]}", "exclude each other"},
      {"{\"prompt\":\"a\",\"ignore_eos\":1}", "\"ignore_eos\""},
      {"{\"prompt\":\"a\",\"stop_token_ids\":3}", "\"stop_token_ids\""},
      {"{\"prompt\":\"a\",\"n\":2}", "\"n\""},
      {"{\"prompt\":\"a\",\"temprature\":2}", "\"temprature\" is not known"},
      {"{\"prompt\":\"a\"}\n\n{\"prompt\":\"b\",\"id\":0}",
       "line 3: field \"id\" \"0\" is that of line 1"},
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
