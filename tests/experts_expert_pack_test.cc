#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "experts/expert_pack.h"
#include "experts/file_expert_source.h"
#include "runtime/base/aligned_buffer.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kSlotBytes = 8192;

PackIdentity Identity() {
  return {.fingerprint = 0x0123456789abcdefu,
          .numerics = "order1-bf16",
          .num_layers = 2,
          .num_experts = 3,
          .shape = {.hidden = 32, .intermediate = 16},
          .slot_bytes = kSlotBytes};
}

std::byte PackByte(ExpertId id, size_t i) {
  return static_cast<std::byte>(id.layer * 100 + id.expert * 10 + i % 7);
}

class PatternSource final : public ExpertSource {
 public:
  absl::Status Read(ExpertId id, std::span<std::byte> slot) override {
    if (!status.ok() && id == ExpertId{1, 1}) return status;
    for (size_t i = 0; i < slot.size(); ++i) slot[i] = PackByte(id, i);
    return absl::OkStatus();
  }

  absl::Status status;
};

class ExpertPackTest : public ::testing::Test {
 protected:
  ExpertPackTest() {
    std::string name = ::testing::TempDir() + "portolan_pack_XXXXXX";
    dir_ = mkdtemp(name.data());
    path_ = dir_ + "/" + kPackFileName;
  }
  ~ExpertPackTest() override { std::filesystem::remove_all(dir_); }

  absl::Status Write() {
    return WritePack(path_, Identity(), source_, [](int64_t, int64_t) {});
  }

  absl::Status Open(const PackIdentity& identity) {
    return PackFormat::Open(path_, identity).status();
  }

  // Flips one bit of the file.
  void Damage(int64_t offset) {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(offset);
    const char byte = static_cast<char>(file.get());
    file.seekp(offset);
    file.put(static_cast<char>(byte ^ 4));
  }

  size_t NumFiles() const {
    return static_cast<size_t>(
        std::distance(std::filesystem::directory_iterator(dir_),
                      std::filesystem::directory_iterator()));
  }

  std::string dir_;
  std::string path_;
  PatternSource source_;
};

TEST_F(ExpertPackTest, GivesBackEveryRecordByEveryReader) {
  ASSERT_TRUE(Write().ok());
  for (const auto kind : {FileReaderKind::kAuto, FileReaderKind::kPread}) {
    FileExpertSource source(*PackFormat::Open(path_, Identity()),
                            *MakeFileReader(kind, 2));
    const AlignedBuffer slot = *AlignedBuffer::Allocate(kSlotBytes);
    for (const ExpertId id : {ExpertId{0, 0}, ExpertId{1, 2}, ExpertId{0, 2}}) {
      ASSERT_TRUE(LoadExpert(source, id, {}, slot.bytes()).ok());
      for (size_t i = 0; i < kSlotBytes; ++i) {
        ASSERT_EQ(slot.bytes()[i], PackByte(id, i));
      }
    }
  }
}

TEST_F(ExpertPackTest, ReportsItsProgress) {
  int64_t last = 0;
  ASSERT_TRUE(
      WritePack(path_, Identity(), source_, [&](int64_t done, int64_t total) {
        EXPECT_EQ(done, ++last);
        EXPECT_EQ(total, 6);
      }).ok());
  EXPECT_EQ(last, 6);
}

TEST_F(ExpertPackTest, AFailedWriterLeavesNoFileAndKeepsTheOldOne) {
  source_.status = absl::DataLossError("truncated");
  EXPECT_TRUE(absl::IsDataLoss(Write()));
  EXPECT_EQ(NumFiles(), 0u);

  source_.status = absl::OkStatus();
  ASSERT_TRUE(Write().ok());
  source_.status = absl::DataLossError("truncated");
  EXPECT_TRUE(absl::IsDataLoss(Write()));
  EXPECT_EQ(NumFiles(), 1u);
  EXPECT_TRUE(Open(Identity()).ok());
}

TEST_F(ExpertPackTest, ADirectoryThatIsNotThereIsNamed) {
  path_ = dir_ + "/missing/pack";
  const absl::Status status = Write();
  ASSERT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("/missing/pack"));
}

TEST_F(ExpertPackTest, APackOfAnotherModelIsStaleByName) {
  ASSERT_TRUE(Write().ok());
  PackIdentity other = Identity();
  other.fingerprint ^= 1;

  const absl::Status status = Open(other);

  ASSERT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("is stale: its model fingerprint is 0123456789abcdef, "
                        "the model's 0123456789abcdee"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
}

TEST_F(ExpertPackTest, EachFieldThatDiffersIsStale) {
  ASSERT_TRUE(Write().ok());
  std::vector<PackIdentity> others(6, Identity());
  others[0].numerics = "order2-bf16";
  others[1].num_layers = 3;
  others[2].num_experts = 4;
  others[3].shape.hidden = 64;
  others[4].slot_bytes = 4096;
  others[5].format = WeightFormat::kInt4;
  for (const PackIdentity& other : others) {
    EXPECT_TRUE(absl::IsFailedPrecondition(Open(other)));
  }
}

TEST_F(ExpertPackTest, DamageOfHeaderOrTableIsFoundAtOnce) {
  for (const int64_t offset : {0, 20, 60, 130, 143, 4096, 4096 + 47}) {
    ASSERT_TRUE(Write().ok());
    Damage(offset);
    const absl::Status status = Open(Identity());
    EXPECT_TRUE(absl::IsDataLoss(status)) << offset << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("portolan pack"));
  }
}

TEST_F(ExpertPackTest, ATruncatedPackIsDamaged) {
  for (const off_t bytes : {0, 100, 4096, 8192, 8192 + 6 * 8192 - 1}) {
    ASSERT_TRUE(Write().ok());
    ASSERT_EQ(truncate(path_.c_str(), bytes), 0);
    EXPECT_TRUE(absl::IsDataLoss(Open(Identity()))) << bytes;
  }
}

TEST_F(ExpertPackTest, ADamagedRecordIsNamedAndItsNeighboursAreNot) {
  ASSERT_TRUE(Write().ok());
  Damage(8192 + 4 * kSlotBytes + 5000);
  FileExpertSource source(*PackFormat::Open(path_, Identity()),
                          *MakeFileReader(FileReaderKind::kAuto, 2));
  const AlignedBuffer slot = *AlignedBuffer::Allocate(kSlotBytes);

  EXPECT_TRUE(LoadExpert(source, {1, 0}, {}, slot.bytes()).ok());
  const absl::Status status = LoadExpert(source, {1, 1}, {}, slot.bytes());

  ASSERT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("the record of expert L1/E1 at byte 40960"));
}

TEST_F(ExpertPackTest, IsFoundBesideTheModelOrInThePackDir) {
  const std::string model = dir_ + "/model";
  const std::string packs = dir_ + "/packs";
  std::filesystem::create_directory(model);
  std::filesystem::create_directory(packs);
  EXPECT_EQ(FindPack(model, packs, 0xab), "");

  std::ofstream(model + "/experts.portolan-pack") << "x";
  EXPECT_EQ(FindPack(model, "", 0xab), model + "/experts.portolan-pack");
  std::ofstream(packs + "/experts-00000000000000ab.portolan-pack") << "x";
  EXPECT_EQ(FindPack(model, packs, 0xab),
            packs + "/experts-00000000000000ab.portolan-pack");
  // A directory that was named is not passed over.
  EXPECT_EQ(FindPack(model, packs, 0xac), "");
  std::ofstream(packs + "/experts.portolan-pack") << "x";
  EXPECT_EQ(FindPack(model, packs, 0xac), packs + "/experts.portolan-pack");
}

}  // namespace
}  // namespace portolan
