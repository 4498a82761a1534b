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

  EXPECT_TRUE(CheckHeader(header, header, "rank 1 on b").ok());
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
    return Text(CheckHeader(got, want, "rank 1 on b"));
  };

  EXPECT_THAT(with([](auto& h) { h.step = 39; }),
              AllOf(HasSubstr("rank 1 on b"), HasSubstr("step 39"),
                    HasSubstr("expects 40")));
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

}  // namespace
}  // namespace portolan
