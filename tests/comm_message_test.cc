#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <string>

#include "comm/message.h"

namespace portolan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Text(const absl::Status& status) {
  return std::string(status.message());
}

TEST(MessageTest, AnAbortKeepsCodeTextAndPlace) {
  const MessageHeader where{.step = 17, .layer = 3};
  std::array<std::byte, kMaxAbortBytes> bytes;

  const size_t size =
      EncodeAbort(where, ExchangePhase::kCompute,
                  absl::DataLossError("expert L3/E5: short read"), bytes);
  const auto status = DecodeAbort(std::span(bytes).first(size), "rank 1 on b");

  ASSERT_TRUE(status.has_value());
  EXPECT_TRUE(absl::IsDataLoss(*status));
  EXPECT_EQ(Text(*status),
            "rank 1 on b failed in phase `compute` of layer 3, step 17: expert "
            "L3/E5: short read");
}

TEST(MessageTest, ALongAbortIsCutAndStillDecodes) {
  std::array<std::byte, kMaxAbortBytes> bytes;

  const size_t size =
      EncodeAbort({}, ExchangePhase::kHeader,
                  absl::InternalError(std::string(5000, 'x')), bytes);

  EXPECT_EQ(size, kMaxAbortBytes);
  EXPECT_TRUE(DecodeAbort(std::span(bytes).first(size), "r").has_value());
}

TEST(MessageTest, OtherMessagesAreNoAborts) {
  const MessageHeader header{.kind = MessageKind::kCombine};
  const auto bytes = std::as_bytes(std::span(&header, 1));

  EXPECT_FALSE(DecodeAbort(bytes, "r").has_value());
  EXPECT_FALSE(DecodeAbort(bytes.first(10), "r").has_value());
}

TEST(MessageTest, AHeaderThatFitsPasses) {
  const MessageHeader header{.kind = MessageKind::kDispatch, .step = 4};

  EXPECT_TRUE(CheckHeader(header, header).ok());
}

TEST(MessageTest, AWrongHeaderNamesTheFieldAndBothValues) {
  const MessageHeader want{.kind = MessageKind::kDispatch,
                           .epoch = 2,
                           .step = 40,
                           .layer = 5,
                           .round = 0,
                           .placement_version = 9};
  const auto with = [&](auto change) {
    MessageHeader got = want;
    change(got);
    return Text(CheckHeader(got, want));
  };

  EXPECT_THAT(with([](auto& h) { h.step = 39; }),
              AllOf(HasSubstr("step 39"), HasSubstr("expects 40")));
  EXPECT_THAT(with([](auto& h) { h.layer = 6; }),
              AllOf(HasSubstr("layer 6"), HasSubstr("expects 5")));
  EXPECT_THAT(with([](auto& h) { h.epoch = 1; }),
              AllOf(HasSubstr("epoch 1"), HasSubstr("expects 2")));
  EXPECT_THAT(with([](auto& h) { h.round = 3; }), HasSubstr("round 3"));
  EXPECT_THAT(with([](auto& h) { h.placement_version = 8; }),
              AllOf(HasSubstr("placement version 8"), HasSubstr("expects 9")));
  EXPECT_THAT(with([](auto& h) { h.kind = MessageKind::kCombine; }),
              HasSubstr("kind 3"));
  EXPECT_THAT(with([](auto& h) { h.magic = 1; }), HasSubstr("magic 1"));
}

TEST(MessageTest, CountsThatAKindCannotHaveAreRefused) {
  const auto check = [](MessageKind kind, auto change) {
    const MessageHeader want{.kind = kind};
    MessageHeader got = want;
    change(got);
    return Text(CheckHeader(got, want));
  };

  EXPECT_THAT(check(MessageKind::kStep, [](auto& h) { h.rows = 1; }),
              HasSubstr("rows 1"));
  EXPECT_THAT(check(MessageKind::kStep, [](auto& h) { h.selections = 2; }),
              HasSubstr("selections 2"));
  EXPECT_THAT(check(MessageKind::kStep, [](auto& h) { h.rounds = 3; }),
              HasSubstr("rounds 3"));
  EXPECT_THAT(check(MessageKind::kStep, [](auto& h) { h.hints = -1; }),
              HasSubstr("hints -1"));
  EXPECT_THAT(check(MessageKind::kCombine, [](auto& h) { h.selections = 4; }),
              HasSubstr("selections 4"));
  EXPECT_THAT(check(MessageKind::kCombine, [](auto& h) { h.hints = 5; }),
              HasSubstr("hints 5"));
  EXPECT_THAT(check(MessageKind::kCombine, [](auto& h) { h.rounds = 0; }),
              HasSubstr("rounds 0"));
  EXPECT_THAT(check(MessageKind::kCombine, [](auto& h) { h.rows = -6; }),
              HasSubstr("rows -6"));
  EXPECT_THAT(check(MessageKind::kDispatch, [](auto& h) { h.rounds = 0; }),
              HasSubstr("rounds 0"));
  EXPECT_THAT(check(MessageKind::kDispatch, [](auto& h) { h.rows = 7; }),
              HasSubstr("selections 0"));  // a row of no expert
  EXPECT_THAT(check(MessageKind::kDispatch, [](auto& h) { h.text_bytes = 8; }),
              HasSubstr("text bytes 8"));
}

TEST(MessageTest, AStepRecordThatPlansTheAbsurdIsRefused) {
  const auto check = [](StepFields fields) {
    return Text(CheckStepFields(fields));
  };

  EXPECT_EQ(check({.rows_planned = 512, .load_us = 5000, .has_work = 1}), "");
  EXPECT_THAT(check({.rows_planned = -1}), HasSubstr("planned rows -1"));
  EXPECT_THAT(check({.rows_planned = kMostRowsPlanned + 1}),
              HasSubstr("planned rows 16777217"));
  EXPECT_THAT(check({.load_us = -2}), HasSubstr("load time in us -2"));
  EXPECT_THAT(check({.load_us = INT64_MAX}), HasSubstr("load time in us 9"));
  EXPECT_THAT(check({.has_work = 3}), HasSubstr("has_work 3"));
}

}  // namespace
}  // namespace portolan
