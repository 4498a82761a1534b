#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "experts/checkpoint_format.h"
#include "experts/expert_slot.h"
#include "experts/file_expert_source.h"
#include "experts/file_reader.h"
#include "runtime/model/checkpoint/expert_reader.h"
#include "tests/tiny_checkpoint.h"

namespace portolan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// A rank's view of a model's files.
struct Reader {
  explicit Reader(const std::string& dir,
                  Checkpoint::ReadObserver observer = nullptr)
      : config(LoadModelConfig(dir).value()),
        checkpoint(Checkpoint::Open(dir, std::move(observer)).value()),
        tensors(ExpertTensors::Find(config, *checkpoint).value()),
        source(tensors, *checkpoint) {}

  std::vector<std::byte> NewSlot() const {
    return std::vector<std::byte>(
        static_cast<size_t>(ExpertSlotBytes(tensors.shape())));
  }

  ModelConfig config;
  std::unique_ptr<Checkpoint> checkpoint;
  ExpertTensors tensors;
  CheckpointExpertSource source;
};

// What the slot of an expert of a tiny model must hold.
std::vector<std::byte> WantedSlot(const TinyModel& m, ExpertId id) {
  const int64_t size = m.hidden * m.intermediate;
  const std::string experts = m.block(id.layer) + ".experts.";
  const std::string expert = absl::StrCat(experts, id.expert, ".");
  const auto part = [&](const char* name) {
    return TinyWeights(absl::StrCat(expert, name, ".weight"), size);
  };
  const ExpertShape shape{.hidden = m.hidden, .intermediate = m.intermediate};
  std::vector<std::byte> slot(static_cast<size_t>(ExpertSlotBytes(shape)));
  if (m.fused) {
    const std::string both = experts + "gate_up_proj";
    PackExpert(
        shape, TinyWeights(both, size, 2 * id.expert * size).data(),
        TinyWeights(both, size, (2 * id.expert + 1) * size).data(),
        TinyWeights(experts + "down_proj", size, id.expert * size).data(),
        slot.data());
  } else {
    PackExpert(shape, part(m.mixtral ? "w1" : "gate_proj").data(),
               part(m.mixtral ? "w3" : "up_proj").data(),
               part(m.mixtral ? "w2" : "down_proj").data(), slot.data());
  }
  return slot;
}

TEST(CheckpointExpertSourceTest, PacksExpertsOfEveryLayoutAndDtype) {
  for (const char* dtype : {"BF16", "F16", "F32"}) {
    for (bool mixtral : {false, true}) {
      for (bool fused : {false, true}) {
        const TinyModel model{
            .mixtral = mixtral, .fused = fused, .dtype = dtype};
        const TempDir dir;
        WriteTinyModel(dir, model, 2);
        Reader reader(dir.path());
        std::vector<std::byte> slot = reader.NewSlot();

        const absl::Status read = reader.source.Read({1, 2}, slot);

        ASSERT_TRUE(read.ok()) << read;
        EXPECT_EQ(slot, WantedSlot(model, {1, 2})) << dtype << mixtral << fused;
      }
    }
  }
}

// Every rank loads the experts it owns; together they read each expert byte
// of the model once, and none of them a byte of another's.
void ExpectEachByteOnce(const std::string& dir, int num_ranks) {
  std::map<std::pair<std::string, uint64_t>, uint64_t> read;  // start -> bytes
  uint64_t sum = 0;
  uint64_t wanted = 0;
  for (int rank = 0; rank < num_ranks; ++rank) {
    Reader reader(dir, [&](const TensorExtent& range, ReadPurpose purpose) {
      EXPECT_EQ(purpose, ReadPurpose::kExpert);
      EXPECT_TRUE(
          read.emplace(std::pair(range.file, range.offset), range.bytes).second)
          << "read twice: " << range.file << " at " << range.offset;
    });
    wanted = reader.tensors.total_bytes();
    uint64_t owned = 0;
    std::vector<std::byte> slot = reader.NewSlot();
    for (int layer = 0; layer < reader.config.num_layers; ++layer) {
      for (int e = rank; e < reader.config.num_experts; e += num_ranks) {
        ASSERT_TRUE(reader.source.Read({layer, e}, slot).ok());
        owned += reader.tensors.ExpertExtentsOf({layer, e}).bytes();
      }
    }
    EXPECT_EQ(reader.checkpoint->bytes_read().expert, owned);
    EXPECT_EQ(reader.checkpoint->bytes_read().dense, 0u);
    sum += reader.checkpoint->bytes_read().expert;
  }
  EXPECT_EQ(sum, wanted);
  const std::pair<std::string, uint64_t>* before = nullptr;
  uint64_t end = 0;
  for (const auto& [start, bytes] : read) {
    if (before != nullptr && before->first == start.first) {
      EXPECT_LE(end, start.second);  // no overlap
    }
    before = &start;
    end = start.second + bytes;
  }
}

TEST(CheckpointExpertSourceTest, RanksTogetherReadEachExpertByteOnce) {
  for (int num_ranks : {1, 2, 3, 5}) {
    ExpectEachByteOnce(PORTOLAN_SOURCE_DIR "/models/tiny-moe", num_ranks);
  }
}

TEST(CheckpointExpertSourceTest, SoDoTheyWithFusedExperts) {
  const TempDir dir;
  WriteTinyModel(dir, {.fused = true, .dtype = "F32", .num_experts = 5}, 2);

  for (int num_ranks : {1, 2, 7}) ExpectEachByteOnce(dir.path(), num_ranks);
}

// Notes which bytes of which file are read.
class RecordingReader final : public FileReader {
 public:
  struct Range {
    std::string file;
    uint64_t begin = 0;
    uint64_t end = 0;
  };

  explicit RecordingReader(std::vector<Range>& ranges)
      : reader_(*MakeFileReader(FileReaderKind::kAuto, 4)), ranges_(ranges) {}

  std::string_view name() const override { return reader_->name(); }
  int depth() const override { return reader_->depth(); }
  void Submit(const FileRead& read) override {
    ranges_.push_back(
        {std::filesystem::read_symlink(absl::StrCat("/proc/self/fd/", read.fd)),
         read.offset, read.offset + read.to.size()});
    reader_->Submit(read);
  }
  void Wait(absl::Duration timeout, std::vector<FileReadDone>& done) override {
    reader_->Wait(timeout, done);
  }
  void Wake() override { reader_->Wake(); }

 private:
  const std::unique_ptr<FileReader> reader_;
  std::vector<Range>& ranges_;
};

// What a rank of `generate` reads: every byte of its own experts, and beside
// them only what lies in the same 4 KiB blocks or in a gap that one read
// bridges. Returns the bytes of its experts.
uint64_t ExpectOwnBytesOnly(const std::string& dir, int rank, int num_ranks) {
  constexpr uint64_t kMostGap = 32 << 10;
  const Reader model(dir);
  std::vector<ExpertId> owned;
  for (int layer = 0; layer < model.config.num_layers; ++layer) {
    for (int e = rank; e < model.config.num_experts; e += num_ranks) {
      owned.push_back({layer, e});
    }
  }
  std::vector<RecordingReader::Range> ranges;
  FileExpertSource source(
      *CheckpointFormat::Open(
          model.tensors.shape(), owned,
          [&](ExpertId id) { return model.tensors.ExpertExtentsOf(id); }),
      std::make_unique<RecordingReader>(ranges));
  const AlignedBuffer staging =
      *AlignedBuffer::Allocate(source.staging_bytes());
  const AlignedBuffer slot = *AlignedBuffer::Allocate(
      static_cast<size_t>(ExpertSlotBytes(model.tensors.shape())));

  uint64_t bytes = 0;
  uint64_t read = 0;
  for (const ExpertId id : owned) {
    ranges.clear();
    EXPECT_TRUE(LoadExpert(source, id, staging.bytes(), slot.bytes()).ok());

    const ExpertExtents extents = model.tensors.ExpertExtentsOf(id);
    bytes += extents.bytes();
    uint64_t useful = 0;
    for (const RecordingReader::Range& range : ranges) {
      // A block that the file's end cuts comes back short.
      read += std::min<uint64_t>(range.end,
                                 std::filesystem::file_size(range.file)) -
              range.begin;
      uint64_t own = 0;
      for (const TensorExtent* extent :
           {&extents.gate, &extents.up, &extents.down}) {
        if (std::filesystem::canonical(extent->file) != range.file) continue;
        const uint64_t begin = std::max(range.begin, extent->offset);
        const uint64_t end =
            std::min(range.end, extent->offset + extent->bytes);
        if (begin < end) own += end - begin;
      }
      EXPECT_LE(range.end - range.begin - own, 2 * kDirectAlignment + kMostGap)
          << ToString(id) << ": " << range.file << " from " << range.begin;
      useful += own;
    }
    EXPECT_EQ(useful, extents.bytes()) << ToString(id);
  }
  EXPECT_EQ(static_cast<uint64_t>(source.bytes_read()), read);
  return bytes;
}

TEST(RanksReadTest, TheBytesOfTheirOwnExpertsAndNoOther) {
  const TempDir dir;
  WriteTinyModel(dir, {.fused = true, .dtype = "F32", .num_experts = 5}, 2);
  for (const std::string& model :
       {std::string(PORTOLAN_SOURCE_DIR "/models/tiny-moe"),
        std::string(dir.path())}) {
    for (const int num_ranks : {1, 2, 3, 5}) {
      uint64_t sum = 0;
      for (int rank = 0; rank < num_ranks; ++rank) {
        sum += ExpectOwnBytesOnly(model, rank, num_ranks);
      }
      EXPECT_EQ(sum, Reader(model).tensors.total_bytes());
    }
  }
}

TEST(CheckpointExpertSourceTest, AnExpertThatIsNotThereIsNotFound) {
  const TempDir dir;
  WriteTinyModel(dir, {.dense_layer = 1});
  Reader reader(dir.path());
  std::vector<std::byte> slot = reader.NewSlot();

  for (const ExpertId id : {ExpertId{0, 3}, {1, 0}, {2, 0}, {-1, 0}, {0, -1}}) {
    EXPECT_TRUE(absl::IsNotFound(reader.source.Read(id, slot))) << ToString(id);
  }
}

TEST(CheckpointExpertSourceTest, ATruncatedFileNamesExpertFileAndOffset) {
  const TempDir dir;
  WriteTinyModel(dir, {});
  Reader reader(dir.path());
  std::vector<std::byte> slot = reader.NewSlot();
  const TensorExtent& down = reader.tensors.ExpertExtentsOf({1, 2}).down;
  std::filesystem::resize_file(down.file, down.offset + 10);

  const absl::Status read = reader.source.Read({1, 2}, slot);

  EXPECT_TRUE(absl::IsDataLoss(read));
  EXPECT_THAT(std::string(read.message()),
              AllOf(HasSubstr("L1/E2"), HasSubstr("model.safetensors"),
                    HasSubstr(absl::StrCat("offset ", down.offset + 10))));
}

TEST(CheckpointExpertSourceTest, ThreadsReadAtTheSameTime) {
  const TinyModel model{.num_experts = 8, .intermediate = 40};
  const TempDir dir;
  WriteTinyModel(dir, model);
  Reader reader(dir.path());
  std::vector<std::vector<std::byte>> slots(8, reader.NewSlot());

  std::vector<std::thread> threads;
  for (int e = 0; e < 8; ++e) {
    threads.emplace_back([&, e] {
      for (int layer = 0; layer < 2; ++layer) {
        EXPECT_TRUE(
            reader.source.Read({layer, e}, slots[static_cast<size_t>(e)]).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();

  for (int e = 0; e < 8; ++e) {
    EXPECT_EQ(slots[static_cast<size_t>(e)], WantedSlot(model, {1, e}));
  }
}

}  // namespace
}  // namespace portolan
