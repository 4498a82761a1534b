#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "clients/cc/transcript.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::GenerateResponse Message(uint32_t offset, std::vector<int32_t> tokens,
                             const std::string& text) {
  v1::GenerateResponse response;
  response.set_request_id("r");
  response.set_offset(offset);
  response.mutable_token_ids()->Assign(tokens.begin(), tokens.end());
  response.set_text(text);
  return response;
}

v1::GenerateResponse End(v1::FinishReason reason) {
  v1::GenerateResponse response;
  response.set_request_id("r");
  response.mutable_finish()->set_reason(reason);
  return response;
}

TEST(TranscriptTest, AddsUpWhatComes) {
  Transcript transcript;
  v1::GenerateResponse end = End(v1::FINISH_REASON_STOP);
  end.mutable_finish()->set_text_tail("!");

  ASSERT_TRUE(transcript.Add(Message(0, {}, "")).ok());
  ASSERT_TRUE(transcript.Add(Message(0, {5, 6}, "ab")).ok());
  ASSERT_TRUE(transcript.Add(Message(2, {7}, "c")).ok());
  ASSERT_TRUE(transcript.Add(end).ok());

  EXPECT_THAT(transcript.tokens(), ElementsAre(5, 6, 7));
  EXPECT_EQ(transcript.text(), "abc!");
  EXPECT_TRUE(transcript.finished());
  EXPECT_TRUE(transcript.Outcome().ok());
}

TEST(TranscriptTest, TakesNoTokenTwiceAndLeavesNoneOut) {
  Transcript transcript(/*from=*/4);
  ASSERT_TRUE(transcript.Add(Message(4, {1, 2}, "ab")).ok());

  EXPECT_TRUE(absl::IsDataLoss(transcript.Add(Message(4, {1}, "a"))));
  EXPECT_TRUE(absl::IsDataLoss(transcript.Add(Message(5, {2}, "b"))));
  EXPECT_TRUE(absl::IsDataLoss(transcript.Add(Message(7, {4}, "d"))));

  EXPECT_EQ(transcript.next_offset(), 6);
  EXPECT_EQ(transcript.text(), "ab");
}

TEST(TranscriptTest, TakesNothingOfAnotherRequestOrAfterTheEnd) {
  Transcript transcript;
  ASSERT_TRUE(transcript.Add(Message(0, {1}, "a")).ok());
  v1::GenerateResponse other = Message(1, {2}, "b");
  other.set_request_id("s");
  EXPECT_TRUE(absl::IsDataLoss(transcript.Add(other)));

  ASSERT_TRUE(transcript.Add(End(v1::FINISH_REASON_LENGTH)).ok());
  EXPECT_TRUE(absl::IsDataLoss(transcript.Add(Message(1, {2}, "b"))));
}

TEST(TranscriptTest, TheOutcomeIsTheCodeOfTheRequest) {
  Transcript failed;
  v1::GenerateResponse end = End(v1::FINISH_REASON_ERROR);
  end.mutable_finish()->mutable_error()->set_code(4);
  end.mutable_finish()->mutable_error()->set_message("too late");
  ASSERT_TRUE(failed.Add(end).ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(failed.Outcome()));
  EXPECT_THAT(failed.Outcome().message(), HasSubstr("too late"));

  Transcript cancelled;
  ASSERT_TRUE(cancelled.Add(End(v1::FINISH_REASON_CANCELLED)).ok());
  EXPECT_TRUE(absl::IsCancelled(cancelled.Outcome()));

  EXPECT_FALSE(Transcript().Outcome().ok());
}

TEST(TranscriptTest, JsonNamesWhatTheClientCalledIt) {
  Transcript transcript;
  v1::GenerateResponse first = Message(0, {}, "");
  first.set_custom_id("mine");
  ASSERT_TRUE(transcript.Add(first).ok());
  ASSERT_TRUE(transcript.Add(Message(0, {9}, "\xff")).ok());
  ASSERT_TRUE(transcript.Add(End(v1::FINISH_REASON_LENGTH)).ok());

  EXPECT_THAT(ToJson(transcript), HasSubstr("\"id\":\"mine\""));
  EXPECT_THAT(ToJson(transcript), HasSubstr("\"tokens\":[9]"));
  EXPECT_THAT(ToJson(transcript), HasSubstr("\"finish_reason\":\"length\""));
}

}  // namespace
}  // namespace portolan
