#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "experts/hash64.h"
#include "experts/history.h"

namespace portolan {
namespace {

constexpr HistoryShape kShape{.num_layers = 2,
                              .num_experts = 4,
                              .top_k = 2,
                              .hidden = 3,
                              .fingerprint = 17,
                              .iterations = 4,
                              .sequences = 4,
                              .token_ids = 8};

History Experienced() {
  History history(kShape);
  history.Learn(SequenceRecord{.context = {3, 4, 0},
                               .map = {1, 0.5f, 0.5f, 0, 0, 0, 1, 1},
                               .tokens = {7, 9},
                               .experts = {0, 1, 2, 3, 0, 2, 3, 2}});
  history.Learn(IterationRecord{
      .embedding = {0, 1, 0},
      .map = {0.1f, 0.2f, 0.3f, 0.4f, 0.25f, 0.25f, 0.25f, 0.25f}});
  return history;
}

class HistoryFileTest : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(directory_); }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void Write(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary) << bytes;
  }

  const std::filesystem::path directory_ =
      std::filesystem::path(testing::TempDir()) /
      testing::UnitTest::GetInstance()->current_test_info()->name();
  const std::string path_ = directory_ / "history";
};

TEST_F(HistoryFileTest, ComesBackAsItWas) {
  History saved = Experienced();
  ASSERT_TRUE(saved.Save(path_).ok());
  History loaded(kShape);

  ASSERT_TRUE(loaded.Load(path_).ok());

  EXPECT_EQ(loaded.Serialize(), saved.Serialize());
  EXPECT_EQ(loaded.sequences().size(), 1);
  EXPECT_EQ(loaded.iterations().size(), 1);
}

TEST_F(HistoryFileTest, AFileThatIsNotThereIsNotFound) {
  EXPECT_EQ(History(kShape).Load(path_).code(), absl::StatusCode::kNotFound);
}

TEST_F(HistoryFileTest, AnyDamagedByteIsNoticedAndChangesNothing) {
  const std::string sound = Experienced().Serialize();
  History history = Experienced();
  for (size_t place = 0; place < sound.size(); ++place) {
    std::string damaged = sound;
    damaged[place] = static_cast<char>(damaged[place] ^ 0x10);

    ASSERT_EQ(history.Parse(damaged).code(), absl::StatusCode::kDataLoss)
        << "byte " << place;
  }
  EXPECT_EQ(history.Serialize(), sound);
}

TEST_F(HistoryFileTest, ATruncatedFileIsNoticedAtEveryLength) {
  const std::string sound = Experienced().Serialize();
  History history(kShape);
  for (size_t length = 0; length < sound.size(); ++length) {
    ASSERT_EQ(history.Parse(std::string_view(sound).substr(0, length)).code(),
              absl::StatusCode::kDataLoss)
        << "length " << length;
  }
}

TEST_F(HistoryFileTest, ErrorsNameTheFileAndTheRemedy) {
  Write("PTLHIST0 of another day, long enough to have a checksum");

  const absl::Status status = History(kShape).Load(path_);

  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(
      std::string(status.message()),
      testing::AllOf(testing::HasSubstr(path_),
                     testing::HasSubstr("not a history of this version"),
                     testing::HasSubstr("remove it")));
}

// Rows of twelve experts, of which a compact history keeps four times top-k.
HistoryShape WideShape(MapFormat format) {
  return {.num_layers = 2,
          .num_experts = 12,
          .top_k = 2,
          .hidden = 3,
          .fingerprint = 17,
          .iterations = 4,
          .sequences = 4,
          .token_ids = 8,
          .format = format};
}

History Wide(MapFormat format) {
  History history(WideShape(format));
  std::vector<float> map(2 * 12);
  for (size_t i = 0; i < map.size(); ++i) {
    map[i] = 1.0f / static_cast<float>(1 + (i * 7) % 12);
  }
  history.Learn(IterationRecord{.embedding = {0, 1, 0}, .map = map});
  history.Learn(SequenceRecord{.context = {0.3f, 0.7f, 1},
                               .map = map,
                               .tokens = {7},
                               .experts = {0, 1, 2, 3}});
  return history;
}

std::vector<float> FirstRow(const ExpertMapStore& store) {
  std::vector<float> row(static_cast<size_t>(store.shape().num_experts));
  store.CopyRow(0, 0, row);
  return row;
}

TEST_F(HistoryFileTest, ACompactOneComesBackToTheBitAndTakesFewerBytes) {
  const History saved = Wide(MapFormat::kCompact);
  ASSERT_TRUE(saved.Save(path_).ok());
  History loaded(WideShape(MapFormat::kCompact));

  ASSERT_TRUE(loaded.Load(path_).ok());

  EXPECT_EQ(FirstRow(loaded.iterations()),
            FirstRow(Wide(MapFormat::kCompact).iterations()));
  const std::string bytes = loaded.Serialize();
  EXPECT_EQ(loaded.iterations().size(), 1);
  EXPECT_LT(bytes.size(), Wide(MapFormat::kExact).Serialize().size());
  History again(WideShape(MapFormat::kCompact));
  ASSERT_TRUE(again.Parse(bytes).ok());
  EXPECT_EQ(again.Serialize(), bytes);
}

TEST_F(HistoryFileTest, AnExactFileBecomesCompactAsIfItHadBeenLearntSo) {
  ASSERT_TRUE(Wide(MapFormat::kExact).Save(path_).ok());
  History loaded(WideShape(MapFormat::kCompact));

  ASSERT_TRUE(loaded.Load(path_).ok());

  History learnt = Wide(MapFormat::kCompact);
  EXPECT_EQ(FirstRow(loaded.iterations()), FirstRow(learnt.iterations()));
  EXPECT_EQ(FirstRow(loaded.sequences()), FirstRow(learnt.sequences()));
  EXPECT_EQ(std::ranges::count(FirstRow(loaded.iterations()), 0.0f), 12 - 8);
}

TEST_F(HistoryFileTest, ACompactFileIsRefusedWhereMapsAreExact) {
  ASSERT_TRUE(Wide(MapFormat::kCompact).Save(path_).ok());
  History history = Wide(MapFormat::kExact);
  const std::string before = history.Serialize();

  const absl::Status status = history.Load(path_);

  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(testing::HasSubstr(path_),
                             testing::HasSubstr("--history-format compact"),
                             testing::HasSubstr("name another file")));
  EXPECT_EQ(history.Serialize(), before);
}

TEST_F(HistoryFileTest, AnyDamagedByteOfACompactOneIsNoticed) {
  const std::string sound = Wide(MapFormat::kCompact).Serialize();
  History history(WideShape(MapFormat::kCompact));
  for (size_t place = 0; place < sound.size(); ++place) {
    std::string damaged = sound;
    damaged[place] = static_cast<char>(damaged[place] ^ 0x10);

    ASSERT_EQ(history.Parse(damaged).code(), absl::StatusCode::kDataLoss)
        << "byte " << place;
  }
}

std::string WithChecksum(std::string bytes) {
  const uint64_t sum = Hash64(std::as_bytes(std::span(bytes)));
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof(sum));
  return bytes;
}

TEST_F(HistoryFileTest, OneOfVersionOneIsStillRead) {
  const History saved = Wide(MapFormat::kExact);
  std::string bytes = saved.Serialize();
  // It had no format.
  bytes = WithChecksum("PTLHIST1" +
                       bytes.substr(9, bytes.size() - 9 - sizeof(uint64_t)));
  History loaded(WideShape(MapFormat::kExact));

  ASSERT_TRUE(loaded.Parse(bytes).ok());

  EXPECT_EQ(loaded.Serialize(), saved.Serialize());
}

TEST_F(HistoryFileTest, AFormatThatIsNoneIsNoticedBehindARightChecksum) {
  std::string bytes = Wide(MapFormat::kExact).Serialize();
  bytes.resize(bytes.size() - sizeof(uint64_t));
  bytes[8] = 2;

  History history(WideShape(MapFormat::kCompact));

  EXPECT_EQ(history.Parse(WithChecksum(bytes)).code(),
            absl::StatusCode::kDataLoss);
}

TEST_F(HistoryFileTest, AMapBelowZeroIsNoticedBehindARightChecksum) {
  History saved(kShape);
  saved.Learn(IterationRecord{
      .embedding = {0, 1, 0},
      .map = {-0.5f, -0.5f, -0.5f, -0.5f, 0.25f, 0.25f, 0.25f, 0.25f}});
  for (const MapFormat format : {MapFormat::kExact, MapFormat::kCompact}) {
    HistoryShape shape = kShape;
    shape.format = format;

    EXPECT_EQ(History(shape).Parse(saved.Serialize()).code(),
              absl::StatusCode::kDataLoss);
  }
}

TEST_F(HistoryFileTest, AnotherModelOrShapeIsRefused) {
  ASSERT_TRUE(Experienced().Save(path_).ok());
  for (const auto& change : {+[](HistoryShape& s) { s.fingerprint = 18; },
                             +[](HistoryShape& s) { s.num_layers = 3; },
                             +[](HistoryShape& s) { s.num_experts = 5; },
                             +[](HistoryShape& s) { s.top_k = 1; },
                             +[](HistoryShape& s) { s.hidden = 4; }}) {
    HistoryShape other = kShape;
    change(other);

    const absl::Status status = History(other).Load(path_);

    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()),
                testing::HasSubstr("another model"));
  }
}

TEST_F(HistoryFileTest, ASmallerStoreTakesTheNewestRecords) {
  History saved = Experienced();
  saved.Learn(
      IterationRecord{.embedding = {0, 0, 1}, .map = {1, 0, 0, 0, 0, 0, 0, 1}});
  ASSERT_TRUE(saved.Save(path_).ok());
  HistoryShape small = kShape;
  small.iterations = 1;
  History loaded(small);

  ASSERT_TRUE(loaded.Load(path_).ok());

  ASSERT_EQ(loaded.iterations().size(), 1);
  const float newest[] = {0, 0, 1};
  EXPECT_NEAR(loaded.iterations().MatchEmbedding(newest)->similarity, 1, 1e-5);
}

TEST_F(HistoryFileTest, AWriteThatFailsLeavesTheOldFile) {
  ASSERT_TRUE(Experienced().Save(path_).ok());
  // No file may grow beyond a few bytes, as on a full disk.
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  const rlimit limit{.rlim_cur = 10, .rlim_max = old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &limit);
  const absl::Status status = History(kShape).Save(path_);
  setrlimit(RLIMIT_FSIZE, &old);

  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(path_));
  History loaded(kShape);
  ASSERT_TRUE(loaded.Load(path_).ok());
  EXPECT_EQ(loaded.Serialize(), Experienced().Serialize());
}

}  // namespace
}  // namespace portolan
