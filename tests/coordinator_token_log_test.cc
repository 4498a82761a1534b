#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cluster/coordinator/token_log.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

v1::TokenDelta Delta(uint32_t offset, int count, bool logprobs = false) {
  v1::TokenDelta delta;
  delta.set_offset(offset);
  for (int i = 0; i < count; ++i) {
    const int token = static_cast<int>(offset) + i;
    delta.add_token_ids(token);
    // Every third token releases nothing, as inside a character.
    delta.add_texts(token % 3 == 2 ? "" : std::to_string(token) + ",");
    if (logprobs) delta.add_logprobs()->mutable_chosen()->set_token_id(token);
  }
  return delta;
}

v1::Finish Stop(const std::string& tail = "") {
  v1::Finish finish;
  finish.set_reason(v1::FINISH_REASON_STOP);
  finish.set_text_tail(tail);
  return finish;
}

TEST(TokenLogTest, ReadsOnFromAnyOffset) {
  TokenLog log;
  log.Append(Delta(0, 2));
  log.Append(Delta(2, 3));

  for (int64_t offset = 0; offset < 5; ++offset) {
    v1::GenerateResponse message;
    EXPECT_EQ(log.Read(offset, message), 5);
    EXPECT_THAT(message.token_ids(), SizeIs(5 - offset));
    EXPECT_EQ(message.token_ids(0), offset);
    EXPECT_EQ(message.offset(), offset);
    EXPECT_FALSE(message.has_finish());
  }
  v1::GenerateResponse message;
  log.Read(2, message);
  EXPECT_EQ(message.text(), "3,4,");
}

TEST(TokenLogTest, TheEndComesWithTheLastTokens) {
  TokenLog log;
  log.Append(Delta(0, 3));
  EXPECT_FALSE(log.HasNews(3));
  log.Finish(Stop("tail"));

  v1::GenerateResponse all, end;
  EXPECT_TRUE(log.HasNews(3));
  EXPECT_EQ(log.Read(0, all), 3);
  EXPECT_EQ(log.Read(3, end), 3);

  EXPECT_EQ(all.finish().reason(), v1::FINISH_REASON_STOP);
  EXPECT_THAT(end.token_ids(), SizeIs(0));
  EXPECT_EQ(end.finish().text_tail(), "tail");
  EXPECT_EQ(log.Text(), "0,1,tail");
}

TEST(TokenLogTest, ALongOutputComesInPiecesThatMakeUpTheWhole) {
  TokenLog log;
  log.Append(Delta(0, 5000, /*logprobs=*/true));
  log.Finish(Stop());

  std::string text;
  std::vector<int> tokens;
  int64_t offset = 0;
  bool finished = false;
  while (!finished) {
    v1::GenerateResponse message;
    offset = log.Read(offset, message);
    EXPECT_LE(message.token_ids_size(), 1024);
    EXPECT_EQ(message.logprobs_size(), message.token_ids_size());
    tokens.insert(tokens.end(), message.token_ids().begin(),
                  message.token_ids().end());
    text += message.text();
    finished = message.has_finish();
  }

  EXPECT_THAT(tokens, SizeIs(5000));
  EXPECT_EQ(text, log.Text());
}

TEST(TokenLogTest, AReaderAheadOfTheLogWaits) {
  TokenLog log;
  log.Append(Delta(0, 2));

  EXPECT_FALSE(log.HasNews(10));
  v1::GenerateResponse message;
  EXPECT_EQ(log.Read(10, message), 10);
  EXPECT_THAT(message.token_ids(), SizeIs(0));
}

}  // namespace
}  // namespace portolan
