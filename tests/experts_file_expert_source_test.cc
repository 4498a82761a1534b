#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "experts/file_expert_source.h"
#include "runtime/base/aligned_buffer.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;

// A directory that goes with the test.
class TempDir {
 public:
  TempDir() {
    std::string name = ::testing::TempDir() + "portolan_source_XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

std::byte ByteAt(uint64_t offset) {
  return static_cast<std::byte>((offset * 2654435761u) >> 13);
}

void WriteFile(const std::string& path, uint64_t bytes) {
  std::string content(bytes, '\0');
  for (uint64_t i = 0; i < bytes; ++i) {
    content[i] = static_cast<char>(ByteAt(i));
  }
  std::ofstream(path, std::ios::binary) << content;
}

// Expert e of layer 0 is the bytes [begin, end) of one file, whose covering
// segment is staged; the "slot" gets them at its start.
class RangeFormat final : public RecordFormat {
 public:
  static constexpr uint64_t kRange = 300000;
  static constexpr uint64_t kGap = 1234;  // so that nothing is aligned

  RangeFormat(const std::string& path, int num_experts, DirectFile::Mode mode)
      : file_(*DirectFile::Open(path, mode)) {
    for (int e = 0; e < num_experts; ++e) {
      const uint64_t begin = Begin(e);
      const uint64_t end = begin + kRange;
      segments_.push_back({.file = 0,
                           .offset = AlignDown(begin),
                           .bytes = AlignUp(end) - AlignDown(begin),
                           .landing_offset = 4096,
                           .needed_end = end});
    }
  }

  static uint64_t Begin(int expert) {
    return kGap + static_cast<uint64_t>(expert) * (kRange + kGap);
  }

  std::string name() const override { return "ranges"; }
  std::span<const DirectFile> files() const override { return {&file_, 1}; }
  size_t staging_bytes() const override {
    return 4096 + AlignUp(kRange) + 8192;
  }
  std::span<const FileSegment> Segments(ExpertId id) const override {
    return {&segments_[static_cast<size_t>(id.expert)], 1};
  }
  int64_t LogicalBytes(ExpertId) const override { return kRange; }
  absl::Status Finish(ExpertId id, std::span<const std::byte> landing,
                      std::span<std::byte> slot) override {
    const uint64_t skip = Begin(id.expert) - AlignDown(Begin(id.expert));
    std::ranges::copy(landing.subspan(4096 + skip, kRange), slot.begin());
    return absl::OkStatus();
  }

 private:
  DirectFile file_;
  std::vector<FileSegment> segments_;
};

struct Variant {
  const char* name;
  FileReaderKind reader;
  DirectFile::Mode mode;
};

class FileExpertSourceTest : public ::testing::TestWithParam<Variant> {
 protected:
  static constexpr int kExperts = 3;

  void SetUp() override {
    path_ = dir_.File("weights");
    // The last expert ends at an odd byte, the end of the file.
    WriteFile(path_, RangeFormat::Begin(kExperts - 1) + RangeFormat::kRange);
    if (GetParam().reader == FileReaderKind::kUring &&
        !MakeFileReader(FileReaderKind::kUring, 1).ok()) {
      GTEST_SKIP() << "io_uring is refused here";
    }
    const auto file = DirectFile::Open(path_, GetParam().mode);
    ASSERT_TRUE(file.ok());
    if (file->mode() != GetParam().mode) {
      GTEST_SKIP() << "the file system refuses O_DIRECT";
    }
  }

  std::unique_ptr<FileExpertSource> Source() {
    return std::make_unique<FileExpertSource>(
        std::make_unique<RangeFormat>(path_, kExperts, GetParam().mode),
        *MakeFileReader(GetParam().reader, 3), /*chunk_bytes=*/64 << 10);
  }

  TempDir dir_;
  std::string path_;
};

TEST_P(FileExpertSourceTest, ReadsUnalignedRangesInChunks) {
  const auto source = Source();
  const AlignedBuffer staging =
      *AlignedBuffer::Allocate(source->staging_bytes());
  std::vector<std::byte> slot(RangeFormat::kRange);

  for (int e = 0; e < kExperts; ++e) {
    EXPECT_GE(source->NumChunks({0, e}), 5);
    ASSERT_TRUE(LoadExpert(*source, {0, e}, staging.bytes(), slot).ok());
    for (uint64_t i = 0; i < slot.size(); ++i) {
      ASSERT_EQ(slot[i], ByteAt(RangeFormat::Begin(e) + i)) << e << " " << i;
    }
  }
}

TEST_P(FileExpertSourceTest, AFileTruncatedMeanwhileIsDataLossByName) {
  const auto source = Source();
  const AlignedBuffer staging =
      *AlignedBuffer::Allocate(source->staging_bytes());
  std::vector<std::byte> slot(RangeFormat::kRange);
  ASSERT_EQ(truncate(path_.c_str(), 400000), 0);

  EXPECT_TRUE(LoadExpert(*source, {0, 0}, staging.bytes(), slot).ok());
  const absl::Status status =
      LoadExpert(*source, {0, 1}, staging.bytes(), slot);

  ASSERT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  EXPECT_THAT(std::string(status.message()), HasSubstr("expert L0/E1"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("ends at byte 400000"));
}

TEST_P(FileExpertSourceTest, WakeEndsAWaitWithNothingUnderWay) {
  const auto source = Source();
  std::vector<ChunkDone> done;

  source->Wake();
  source->Wait(absl::InfiniteDuration(), done);
  source->Wait(absl::Milliseconds(1), done);

  EXPECT_TRUE(done.empty());
}

// Pages of the file in the page cache.
size_t NumCachedPages(const std::string& path) {
  const size_t bytes = std::filesystem::file_size(path);
  const int fd = open(path.c_str(), O_RDONLY);
  void* map = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  std::vector<unsigned char> pages((bytes + 4095) / 4096);
  EXPECT_EQ(mincore(map, bytes, pages.data()), 0);
  munmap(map, bytes);
  close(fd);
  return static_cast<size_t>(std::ranges::count_if(
      pages, [](unsigned char page) { return (page & 1) != 0; }));
}

TEST_P(FileExpertSourceTest, ReadsDoNotFillThePageCache) {
  const int fd = open(path_.c_str(), O_RDONLY);
  fsync(fd);
  posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  close(fd);
  if (NumCachedPages(path_) > 0) GTEST_SKIP() << "a file system in memory";
  const auto source = Source();
  const AlignedBuffer staging =
      *AlignedBuffer::Allocate(source->staging_bytes());
  std::vector<std::byte> slot(RangeFormat::kRange);

  ASSERT_TRUE(LoadExpert(*source, {0, 0}, staging.bytes(), slot).ok());
  ASSERT_TRUE(LoadExpert(*source, {0, 2}, staging.bytes(), slot).ok());

  EXPECT_EQ(NumCachedPages(path_), 0u);
}

INSTANTIATE_TEST_SUITE_P(
    Readers, FileExpertSourceTest,
    ::testing::Values(Variant{"UringDirect", FileReaderKind::kUring,
                              DirectFile::Mode::kDirect},
                      Variant{"UringBuffered", FileReaderKind::kUring,
                              DirectFile::Mode::kBuffered},
                      Variant{"PreadDirect", FileReaderKind::kPread,
                              DirectFile::Mode::kDirect},
                      Variant{"PreadBuffered", FileReaderKind::kPread,
                              DirectFile::Mode::kBuffered}),
    [](const auto& variant) { return std::string(variant.param.name); });

// Answers reads as the test says.
class FakeReader final : public FileReader {
 public:
  // Results of the reads, in order; a positive one is cut to what was asked.
  explicit FakeReader(std::vector<int64_t> results)
      : results_(std::move(results)) {}

  std::string_view name() const override { return "fake"; }
  int depth() const override { return 1; }
  void Submit(const FileRead& read) override {
    ASSERT_LT(next_, results_.size());
    int64_t result = results_[next_++];
    if (result > 0) {
      result = std::min(result, static_cast<int64_t>(read.to.size()));
      for (int64_t i = 0; i < result; ++i) {
        read.to[static_cast<size_t>(i)] =
            ByteAt(read.offset + static_cast<uint64_t>(i));
      }
    }
    done_.push_back({read.tag, result});
  }
  void Wait(absl::Duration, std::vector<FileReadDone>& done) override {
    done.insert(done.end(), done_.begin(), done_.end());
    done_.clear();
  }
  void Wake() override {}

 private:
  std::vector<int64_t> results_;
  size_t next_ = 0;
  std::vector<FileReadDone> done_;
};

class ShortReadTest : public ::testing::Test {
 protected:
  ShortReadTest() : path_(dir_.File("weights")) { WriteFile(path_, 400000); }

  absl::Status Load(std::vector<int64_t> results,
                    DirectFile::Mode mode = DirectFile::Mode::kBuffered) {
    FileExpertSource source(std::make_unique<RangeFormat>(path_, 1, mode),
                            std::make_unique<FakeReader>(std::move(results)),
                            /*chunk_bytes=*/1 << 20);
    const AlignedBuffer staging =
        *AlignedBuffer::Allocate(source.staging_bytes());
    slot_.assign(RangeFormat::kRange, std::byte{0});
    const absl::Status status =
        LoadExpert(source, {0, 0}, staging.bytes(), slot_);
    name_ = source.name();
    return status;
  }

  TempDir dir_;
  std::string path_;
  std::vector<std::byte> slot_;
  std::string name_;  // of the source, after the load
};

TEST_F(ShortReadTest, AShortReadGoesOnBehindWhatCame) {
  ASSERT_TRUE(Load({100000, 5000, 1 << 20}).ok());
  for (uint64_t i = 0; i < slot_.size(); ++i) {
    ASSERT_EQ(slot_[i], ByteAt(RangeFormat::Begin(0) + i)) << i;
  }
}

TEST_F(ShortReadTest, ADeviceWithoutHeadwayIsUnavailable) {
  EXPECT_TRUE(absl::IsUnavailable(Load({8192, 0})));
}

TEST_F(ShortReadTest, AnIoErrorIsUnavailableNamingFileOffsetAndExpert) {
  const absl::Status status = Load({-EIO});

  ASSERT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("reading expert L0/E0 from " + path_ +
                        ", bytes 0..301234: Input/output error"));
}

TEST_F(ShortReadTest, AFileThatIsNotReadDirectlyIsReadThroughThePageCache) {
  if (DirectFile::Open(path_)->mode() != DirectFile::Mode::kDirect) {
    GTEST_SKIP() << "the file system refuses O_DIRECT at once";
  }
  ASSERT_TRUE(Load({-EINVAL, 1 << 20}, DirectFile::Mode::kDirect).ok());

  EXPECT_EQ(slot_[0], ByteAt(RangeFormat::Begin(0)));
  EXPECT_THAT(name_, HasSubstr("buffered"));
  // What is refused both ways is an error.
  EXPECT_TRUE(
      absl::IsUnavailable(Load({-EINVAL, -EINVAL}, DirectFile::Mode::kDirect)));
}

TEST(DirectFileTest, LeavingDirectReadsAnyRangeOfTheOpenFile) {
  const TempDir dir;
  WriteFile(dir.File("weights"), 10000);
  const auto file = DirectFile::Open(dir.File("weights"));
  ASSERT_TRUE(file.ok());

  file->LeaveDirect();

  EXPECT_EQ(file->mode(), DirectFile::Mode::kBuffered);
  std::byte odd[3];
  ASSERT_EQ(pread(file->fd(), odd, sizeof(odd), 777), 3);
  EXPECT_EQ(odd[2], ByteAt(779));
}

// Has the kernel refuse a system call to this thread and those that it starts.
bool Refuse(int64_t call, uint32_t error) {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(call), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program{.len = std::size(filter), .filter = filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

void ExpectReads(FileExpertSource& source, int expert) {
  const AlignedBuffer staging =
      *AlignedBuffer::Allocate(source.staging_bytes());
  std::vector<std::byte> slot(RangeFormat::kRange);
  const absl::Status status =
      LoadExpert(source, {0, expert}, staging.bytes(), slot);
  ASSERT_TRUE(status.ok()) << status;
  for (uint64_t i = 0; i < slot.size(); ++i) {
    ASSERT_EQ(slot[i], ByteAt(RangeFormat::Begin(expert) + i)) << i;
  }
}

class RefusedUringTest : public ::testing::Test {
 protected:
  RefusedUringTest() : path_(dir_.File("weights")) { WriteFile(path_, 700000); }

  FileExpertSource Source(FileReaderKind kind) {
    return {std::make_unique<RangeFormat>(path_, 2, DirectFile::Mode::kDirect),
            *MakeFileReader(kind, 3), /*chunk_bytes=*/64 << 10};
  }

  TempDir dir_;
  std::string path_;
};

TEST_F(RefusedUringTest, ThreadsReadWhereItIsRefused) {
  std::jthread([&] {  // the filter ends with it
    ASSERT_TRUE(Refuse(__NR_io_uring_setup, EPERM));
    EXPECT_TRUE(absl::IsUnimplemented(
        MakeFileReader(FileReaderKind::kUring, 3).status()));

    FileExpertSource source = Source(FileReaderKind::kAuto);

    EXPECT_THAT(source.name(), HasSubstr("pread"));
    ExpectReads(source, 0);
    ExpectReads(source, 1);
  });
}

TEST_F(RefusedUringTest, ThreadsReadWhereASandboxAllowsTheRingAndNoReads) {
  std::jthread([&] {
    ASSERT_TRUE(Refuse(__NR_io_uring_enter, EPERM));

    FileExpertSource source = Source(FileReaderKind::kAuto);

    EXPECT_THAT(source.name(), HasSubstr("pread"));
    ExpectReads(source, 0);
  });
}

TEST_F(RefusedUringTest, ThreadsReadOnWhenTheKernelTakesNoMoreReads) {
  if (!MakeFileReader(FileReaderKind::kUring, 3).ok()) {
    GTEST_SKIP() << "io_uring is refused here";
  }
  std::jthread([&] {
    FileExpertSource source = Source(FileReaderKind::kUring);
    ExpectReads(source, 0);
    EXPECT_THAT(source.name(), HasSubstr("io_uring"));

    ASSERT_TRUE(Refuse(__NR_io_uring_enter, ENOMEM));

    ExpectReads(source, 1);
    ExpectReads(source, 0);
    EXPECT_THAT(source.name(), HasSubstr("pread"));
    source.Wake();
    std::vector<ChunkDone> done;
    source.Wait(absl::InfiniteDuration(), done);
    EXPECT_TRUE(done.empty());
  });
}

TEST(DirectFileTest, AMissingFileIsNotFoundByName) {
  const auto file = DirectFile::Open("/nonexistent/weights");
  ASSERT_TRUE(absl::IsNotFound(file.status()));
  EXPECT_THAT(std::string(file.status().message()),
              HasSubstr("/nonexistent/weights"));
}

}  // namespace
}  // namespace portolan
