// The cache over every real source: the same bytes in the slots, whatever they
// come from, and named errors when a file goes bad while it is in use.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "experts/checkpoint_format.h"
#include "experts/expert_cache.h"
#include "experts/expert_pack.h"
#include "experts/expert_slot.h"
#include "experts/file_expert_source.h"
#include "experts/host_source.h"
#include "experts/policy_lru.h"
#include "experts/source_factory.h"
#include "experts/throttled_source.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kLayers = 2;
constexpr int32_t kExperts = 6;
constexpr ExpertShape kShape = {.hidden = 96, .intermediate = 48};
constexpr size_t kElements = 96 * 48;

// A model's experts in one file, and the slots that they should become.
class SourcesTest : public ::testing::Test {
 protected:
  SourcesTest() : slot_bytes_(static_cast<size_t>(ExpertSlotBytes(kShape))) {
    std::string name = ::testing::TempDir() + "portolan_sources_XXXXXX";
    dir_ = mkdtemp(name.data());
    checkpoint_ = dir_ + "/model.safetensors";
    std::mt19937 random(3);
    std::vector<Bf16> weights(3 * kElements * kLayers * kExperts);
    for (Bf16& weight : weights) {
      weight.bits = static_cast<uint16_t>(random());
    }
    std::string content(777, 'h');
    content.append(reinterpret_cast<const char*>(weights.data()),
                   weights.size() * sizeof(Bf16));
    std::ofstream(checkpoint_, std::ios::binary) << content;
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      for (int32_t expert = 0; expert < kExperts; ++expert) {
        ids_.push_back({layer, expert});
        const Bf16* from = weights.data() + 3 * kElements * Index(ids_.back());
        expected_.emplace_back(slot_bytes_);
        PackExpert(kShape, from, from + kElements, from + 2 * kElements,
                   expected_.back().data());
      }
    }
  }
  ~SourcesTest() override { std::filesystem::remove_all(dir_); }

  static size_t Index(ExpertId id) {
    return static_cast<size_t>(id.layer * kExperts + id.expert);
  }

  ExpertExtents ExtentsOf(ExpertId id) const {
    constexpr uint64_t kBytes = kElements * sizeof(Bf16);
    const uint64_t begin = 777 + 3 * kBytes * Index(id);
    const auto matrix = [&](uint64_t i) {
      return TensorExtent{
          .file = checkpoint_, .offset = begin + i * kBytes, .bytes = kBytes};
    };
    return {.gate = matrix(0), .up = matrix(1), .down = matrix(2)};
  }

  std::unique_ptr<ChunkedSource> Checkpoint(FileReaderKind kind) {
    const auto extents = [this](ExpertId id) { return ExtentsOf(id); };
    return std::make_unique<FileExpertSource>(
        *CheckpointFormat::Open(kShape, ids_, extents),
        *MakeFileReader(kind, 4), /*chunk_bytes=*/8192);
  }

  PackIdentity Identity() const {
    return {.fingerprint = 42,
            .numerics = "test",
            .num_layers = kLayers,
            .num_experts = kExperts,
            .shape = kShape,
            .slot_bytes = static_cast<int64_t>(slot_bytes_)};
  }

  std::unique_ptr<ChunkedSource> Pack() {
    // The pack's writer reads whole experts.
    class Whole final : public ExpertSource {
     public:
      explicit Whole(std::unique_ptr<ChunkedSource> source)
          : source_(std::move(source)),
            staging_(*AlignedBuffer::Allocate(source_->staging_bytes())) {}
      absl::Status Read(ExpertId id, std::span<std::byte> slot) override {
        return LoadExpert(*source_, id, staging_.bytes(), slot);
      }

     private:
      std::unique_ptr<ChunkedSource> source_;
      AlignedBuffer staging_;
    };
    Whole whole(Checkpoint(FileReaderKind::kAuto));
    pack_ = dir_ + "/experts.portolan-pack";
    EXPECT_TRUE(
        WritePack(pack_, Identity(), whole, [](int64_t, int64_t) {}).ok());
    return std::make_unique<FileExpertSource>(
        *PackFormat::Open(pack_, Identity()),
        *MakeFileReader(FileReaderKind::kAuto, 4), /*chunk_bytes=*/8192);
  }

  std::unique_ptr<ExpertCache> Cache(std::unique_ptr<ChunkedSource> source,
                                     int32_t num_slots) {
    const PolicyShape shape{.num_layers = kLayers,
                            .num_experts = kExperts,
                            .top_k = 2,
                            .num_slots = num_slots,
                            .expert_bytes = static_cast<int64_t>(slot_bytes_),
                            .owned = ids_};
    return *ExpertCache::Create(
        {.slot_bytes = static_cast<int64_t>(slot_bytes_)}, shape,
        MakeLruPolicy(shape), std::move(source));
  }

  // Visits every layer with every expert, twice, and compares all slots.
  absl::Status VisitAll(ExpertCache& cache) {
    std::vector<ExpertNeed> needs;
    for (int32_t expert = 0; expert < kExperts; ++expert) {
      needs.push_back({expert, 1});
    }
    for (int round = 0; round < 2 * kLayers; ++round) {
      const int32_t layer = round % kLayers;
      size_t num_seen = 0;
      const absl::Status status =
          cache.Visit(layer, needs, [&](std::span<const ReadyExpert> ready) {
            for (const ReadyExpert& expert : ready) {
              ++num_seen;
              const auto& wanted = expected_[Index({layer, expert.need})];
              EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), expert.slot))
                  << layer << " " << expert.need;
            }
            return absl::OkStatus();
          });
      if (!status.ok()) return status;
      EXPECT_EQ(num_seen, needs.size());
    }
    return absl::OkStatus();
  }

  const size_t slot_bytes_;
  std::string dir_;
  std::string checkpoint_;
  std::string pack_;
  std::vector<ExpertId> ids_;
  std::vector<std::vector<std::byte>> expected_;
};

TEST_F(SourcesTest, EverySourceFillsTheSlotsAlike) {
  std::vector<std::unique_ptr<ChunkedSource>> sources;
  sources.push_back(Checkpoint(FileReaderKind::kAuto));
  sources.push_back(Checkpoint(FileReaderKind::kPread));
  sources.push_back(Pack());
  sources.push_back(std::make_unique<ThrottledSource>(
      Checkpoint(FileReaderKind::kAuto),
      LinkSpec{.bytes_per_second = 1e9, .latency = absl::Microseconds(20)},
      static_cast<int64_t>(slot_bytes_), SteadyNow));
  const auto origin = Checkpoint(FileReaderKind::kAuto);
  sources.push_back(
      *HostSource::Load(*origin, ids_, slot_bytes_, [](int64_t, int64_t) {}));
  for (auto& source : sources) {
    const std::string name = source->name();
    const auto cache = Cache(std::move(source), 3);
    EXPECT_TRUE(VisitAll(*cache).ok()) << name;
  }
}

TEST_F(SourcesTest, TheFactoryPrefersAFreshPackAndSaysWhyItTakesNone) {
  const ExpertSourceOptions options = {
      .model_dir = dir_, .link = LinkSpec{.bytes_per_second = 1e9}};
  const auto extents = [this](ExpertId id) { return ExtentsOf(id); };
  const auto name = [&](const PackIdentity& identity, size_t num_notices) {
    auto chosen = MakeExpertSource(options, identity, ids_, extents);
    EXPECT_TRUE(chosen.ok()) << chosen.status();
    EXPECT_EQ(chosen->notices.size(), num_notices);
    const std::string result = chosen->source->name();
    EXPECT_TRUE(VisitAll(*Cache(std::move(chosen->source), 4)).ok());
    return result;
  };
  EXPECT_THAT(name(Identity(), 0), HasSubstr("checkpoint"));
  Pack();
  EXPECT_THAT(name(Identity(), 0), HasSubstr("expert pack"));
  EXPECT_THAT(name(Identity(), 0), HasSubstr("at 1000 MB/s"));
  PackIdentity newer = Identity();
  newer.fingerprint = 43;
  EXPECT_THAT(name(newer, 1), HasSubstr("checkpoint"));
}

TEST_F(SourcesTest, APackDirThatWasNamedIsNotPassedOver) {
  Pack();
  const std::string empty = dir_ + "/packs";
  std::filesystem::create_directory(empty);
  std::vector<std::string> notices;

  const auto missing =
      OpenPack({.model_dir = dir_, .pack_dir = empty}, Identity(), notices);
  PackIdentity newer = Identity();
  newer.fingerprint = 43;
  const auto stale =
      OpenPack({.model_dir = "nowhere", .pack_dir = dir_}, newer, notices);

  EXPECT_TRUE(absl::IsNotFound(missing.status()));
  const std::string message(missing.status().message());
  EXPECT_THAT(message, HasSubstr("--pack-dir " + empty));
  EXPECT_THAT(message, HasSubstr("experts-000000000000002a.portolan-pack"));
  EXPECT_THAT(message, HasSubstr("drop --pack-dir"));
  EXPECT_FALSE(stale.ok());
  EXPECT_THAT(std::string(stale.status().message()), HasSubstr(dir_));
  EXPECT_TRUE(notices.empty());
}

TEST_F(SourcesTest, TheHostTierIsACopyThatOutlivesTheFiles) {
  const auto extents = [this](ExpertId id) { return ExtentsOf(id); };
  auto chosen = MakeExpertSource({.model_dir = dir_, .host_memory = true},
                                 Identity(), ids_, extents);
  ASSERT_TRUE(chosen.ok()) << chosen.status();
  ASSERT_EQ(truncate(checkpoint_.c_str(), 0), 0);

  EXPECT_TRUE(VisitAll(*Cache(std::move(chosen->source), 3)).ok());
}

// Counts the reads that go to the system.
class CountingReader final : public FileReader {
 public:
  explicit CountingReader(int& count)
      : reader_(*MakeFileReader(FileReaderKind::kAuto, 4)), count_(count) {}

  std::string_view name() const override { return reader_->name(); }
  int depth() const override { return reader_->depth(); }
  void Submit(const FileRead& read) override {
    ++count_;
    reader_->Submit(read);
  }
  void Wait(absl::Duration timeout, std::vector<FileReadDone>& done) override {
    reader_->Wait(timeout, done);
  }
  void Wake() override { reader_->Wake(); }

 private:
  std::unique_ptr<FileReader> reader_;
  int& count_;
};

TEST_F(SourcesTest, ALoadFromAPackIsOneRead) {
  Pack();
  int reads = 0;
  const auto cache = Cache(std::make_unique<FileExpertSource>(
                               *PackFormat::Open(pack_, Identity()),
                               std::make_unique<CountingReader>(reads)),
                           3);

  ASSERT_TRUE(VisitAll(*cache).ok());

  const ExpertMetrics metrics = cache->metrics();
  EXPECT_GE(metrics.misses, kLayers * kExperts);
  EXPECT_EQ(reads, metrics.misses);
  EXPECT_EQ(cache->counters().retries, 0);
}

// A device that returns every third read short and fails every fifth, leaving
// rubbish behind.
class FlakyReader final : public FileReader {
 public:
  FlakyReader() : reader_(*MakeFileReader(FileReaderKind::kAuto, 4)) {}

  std::string_view name() const override { return reader_->name(); }
  int depth() const override { return reader_->depth(); }
  void Submit(const FileRead& read) override {
    reads_[read.tag] = read;
    reader_->Submit(read);
  }
  void Wait(absl::Duration timeout, std::vector<FileReadDone>& done) override {
    const size_t before = done.size();
    reader_->Wait(timeout, done);
    for (size_t i = before; i < done.size(); ++i) Spoil(done[i]);
  }
  void Wake() override { reader_->Wake(); }

  int short_reads() const { return short_reads_; }
  int errors() const { return errors_; }

 private:
  void Spoil(FileReadDone& done) {
    const std::span<std::byte> to = reads_.at(done.tag).to;
    ++num_done_;
    if (num_done_ % 5 == 0) {
      std::ranges::fill(to, std::byte{0xEE});
      done.result = -EIO;
      ++errors_;
    } else if (num_done_ % 3 == 0 && done.result > 1) {
      done.result /= 2;
      const auto got = static_cast<size_t>(done.result);
      std::ranges::fill(to.subspan(got), std::byte{0xEE});
      ++short_reads_;
    }
  }

  std::unique_ptr<FileReader> reader_;
  std::map<uint64_t, FileRead> reads_;
  int num_done_ = 0;
  std::atomic<int> short_reads_ = 0;
  std::atomic<int> errors_ = 0;
};

TEST_F(SourcesTest, ShortReadsAndPassingErrorsNeverShowInASlot) {
  const auto extents = [this](ExpertId id) { return ExtentsOf(id); };
  auto flaky = std::make_unique<FlakyReader>();
  const FlakyReader& device = *flaky;
  const auto cache = Cache(
      std::make_unique<FileExpertSource>(
          *CheckpointFormat::Open(kShape, ids_, extents), std::move(flaky),
          /*chunk_bytes=*/8192),
      3);

  for (int round = 0; round < 4; ++round) {
    const absl::Status status = VisitAll(*cache);  // compares every slot
    // A read that fails in all its attempts ends the visit by name.
    EXPECT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
  }

  EXPECT_GT(device.short_reads(), 0);
  EXPECT_GT(device.errors(), 0);
  EXPECT_GT(cache->counters().retries, 0);
}

TEST_F(SourcesTest, AResidentCacheReadsEachExpertOnceAndNoMore) {
  const auto cache =
      Cache(Checkpoint(FileReaderKind::kAuto), kLayers * kExperts);
  ASSERT_TRUE(cache->LoadAll([](int64_t, int64_t) {}).ok());
  // What is on disk does not matter from here on.
  ASSERT_EQ(truncate(checkpoint_.c_str(), 0), 0);

  EXPECT_TRUE(VisitAll(*cache).ok());

  EXPECT_EQ(
      cache->counters().start_logical_bytes,
      static_cast<int64_t>(3 * kElements * sizeof(Bf16)) * kLayers * kExperts);
  // The files gave those bytes, and what shares a block of 4 KiB with them.
  EXPECT_GE(cache->counters().bytes_read,
            cache->counters().start_logical_bytes);
  EXPECT_LE(cache->counters().bytes_read,
            cache->counters().start_logical_bytes +
                kLayers * kExperts * 2 * int64_t{kDirectAlignment});
  EXPECT_EQ(cache->metrics().misses, 0);
}

TEST_F(SourcesTest, ACheckpointTruncatedWhileRunningIsANamedError) {
  const auto cache = Cache(Checkpoint(FileReaderKind::kAuto), 3);
  ASSERT_TRUE(VisitAll(*cache).ok());
  ASSERT_EQ(truncate(checkpoint_.c_str(), 100000), 0);

  const absl::Status status = VisitAll(*cache);

  ASSERT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(checkpoint_));
  EXPECT_THAT(std::string(status.message()), HasSubstr("expert L"));
}

TEST_F(SourcesTest, APackDamagedWhileRunningIsANamedError) {
  const auto cache = Cache(Pack(), 3);
  ASSERT_TRUE(VisitAll(*cache).ok());
  std::fstream file(pack_, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(8192 + 7 * slot_bytes_ + 11));
  file << "damage";
  file.close();

  const absl::Status status = VisitAll(*cache);

  ASSERT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("expert L1/E1"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(pack_));
}

}  // namespace
}  // namespace portolan
