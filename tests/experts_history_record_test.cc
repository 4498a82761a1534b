#include <cmath>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "experts/history.h"
#include "experts/history_record.h"
#include "gtest/gtest.h"

namespace portolan {
namespace {

constexpr RecordShape kShape = {
    .num_layers = 2, .num_experts = 4, .top_k = 2, .hidden = 3};

SequenceRecord Sequence() {
  return {.context = {30, 40, 0},
          .map = {1, 0.5f, 0.5f, 0, 0, 0, 1, 1},
          .tokens = {7, 9},
          .experts = {0, 1, 2, 3, 0, 2, 3, 2}};
}

TEST(HistoryRecordTest, ASequenceComesBackWithUnitContext) {
  const HistoryRow row = EncodeRecord(kShape, Sequence());

  const auto record = DecodeSequence(kShape, row.key, row.map);

  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_NEAR(record->context[0], 0.6f, 1e-3);
  EXPECT_NEAR(record->context[1], 0.8f, 1e-3);
  EXPECT_EQ(record->tokens, Sequence().tokens);
  EXPECT_EQ(record->experts, Sequence().experts);
  for (size_t i = 0; i < record->map.size(); ++i) {
    EXPECT_NEAR(record->map[i], Sequence().map[i], 0.51 / 255);
  }
}

TEST(HistoryRecordTest, ExpertsBeyondAByteTravelWhole) {
  constexpr RecordShape kMany = {
      .num_layers = 1, .num_experts = 400, .top_k = 2, .hidden = 1};
  const SequenceRecord sent = {.context = {1},
                               .map = std::vector<float>(400, 0.0f),
                               .tokens = {1},
                               .experts = {399, 256}};

  const HistoryRow row = EncodeRecord(kMany, sent);

  EXPECT_EQ(DecodeSequence(kMany, row.key, row.map)->experts, sent.experts);
}

TEST(HistoryRecordTest, AnIterationComesBackInHalfPrecision) {
  const IterationRecord sent = {
      .embedding = {0, 0, 2},
      .map = {0.1f, 0.2f, 0.3f, 0.4f, 0.25f, 0.25f, 0.25f, 0.25f}};

  const HistoryRow row = EncodeRecord(kShape, sent);
  const auto record = DecodeIteration(kShape, row.key, row.map);

  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->embedding, (std::vector<float>{0, 0, 1}));
  for (size_t i = 0; i < sent.map.size(); ++i) {
    EXPECT_NEAR(record->map[i], sent.map[i], 1e-3);
  }
}

TEST(HistoryRecordTest, NoRowIsLongerThanIsSaidOfItsShape) {
  for (const int32_t experts : {4, 400}) {
    RecordShape shape = kShape;
    shape.num_experts = experts;
    SequenceRecord longest = {
        .context = {1, 2, 3},
        .map = std::vector<float>(static_cast<size_t>(2 * experts)),
        .tokens = std::vector<int32_t>(kMaxRecordTokens),
        .experts = std::vector<int32_t>(kMaxRecordTokens * 2 * 2)};
    const HistoryRow sequence = EncodeRecord(shape, longest);
    const HistoryRow iteration = EncodeRecord(
        shape,
        IterationRecord{.embedding = longest.context, .map = longest.map});

    EXPECT_EQ(sequence.key.size() + sequence.map.size() + iteration.key.size() +
                  iteration.map.size(),
              MaxRowBytes(shape));
  }
}

TEST(HistoryRecordTest, ATruncatedRowIsRefusedAtEveryLength) {
  const HistoryRow row = EncodeRecord(kShape, Sequence());

  for (size_t size = 0; size < row.map.size(); ++size) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        DecodeSequence(kShape, row.key, row.map.substr(0, size)).status()));
  }
  EXPECT_FALSE(DecodeSequence(kShape, row.key.substr(2), row.map).ok());
  EXPECT_FALSE(DecodeSequence(kShape, row.key, row.map + "x").ok());
}

TEST(HistoryRecordTest, AnExpertThatTheModelLacksIsRefused) {
  HistoryRow row = EncodeRecord(kShape, Sequence());
  row.map.back() = 4;

  EXPECT_FALSE(DecodeSequence(kShape, row.key, row.map).ok());
}

TEST(HistoryRecordTest, ValuesThatAreNoProbabilitiesAreRefused) {
  const HistoryRow row = EncodeRecord(
      kShape, IterationRecord{.embedding = {1, 0, 0},
                              .map = std::vector<float>(8, 0.25f)});
  std::string infinite = row.map;
  infinite[1] = 0x7c;
  std::string negative = row.map;
  negative[1] = static_cast<char>(0xb4);

  EXPECT_FALSE(DecodeIteration(kShape, row.key, infinite).ok());
  EXPECT_FALSE(DecodeIteration(kShape, row.key, negative).ok());
}

TEST(HistoryRecordTest, AHistoryLearnsTokensAndFollowersOfASequence) {
  History history({.num_layers = 2,
                   .num_experts = 4,
                   .top_k = 2,
                   .hidden = 3,
                   .iterations = 4,
                   .sequences = 4,
                   .token_ids = 64});
  const float before = history.popularity()[0];

  history.Learn(Sequence());

  EXPECT_EQ(history.sequences().size(), 1);
  EXPECT_EQ(history.tokens().Find(7, 0).visits, 1);
  EXPECT_EQ(history.tokens().Find(9, 1).counts[3], 1);
  EXPECT_EQ(history.followers().Find(7, 0).counts[2], 1);
  EXPECT_EQ(history.followers().Find(9, 0).visits, 0);
  EXPECT_GT(history.popularity()[0], before);
}

}  // namespace
}  // namespace portolan
