#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "experts/checkpoint_format.h"
#include "experts/expert_slot.h"
#include "experts/file_expert_source.h"
#include "runtime/base/fp16.h"

namespace portolan {
namespace {

TensorExtent Extent(const std::string& file, uint64_t offset, uint64_t bytes) {
  return {.file = file, .offset = offset, .bytes = bytes};
}

TEST(PlanExpertReadTest, NeighboursInAFileAreOneRead) {
  std::vector<std::string> files;
  const ExpertReadPlan plan = PlanExpertRead({.gate = Extent("a", 9000, 5000),
                                              .up = Extent("a", 14000, 5000),
                                              .down = Extent("a", 4000, 5000)},
                                             files);

  ASSERT_EQ(plan.segments.size(), 1u);
  EXPECT_EQ(plan.segments[0].offset, 0u);
  EXPECT_EQ(plan.segments[0].bytes, 20480u);
  EXPECT_EQ(plan.segments[0].needed_end, 19000u);
  EXPECT_EQ(plan.landing, (std::array<uint64_t, 3>{9000, 14000, 4000}));
  EXPECT_EQ(plan.landing_bytes, 20480u);
}

TEST(PlanExpertReadTest, DistantRangesAndOtherFilesAreReadsOfTheirOwn) {
  std::vector<std::string> files = {"other"};
  const ExpertReadPlan plan = PlanExpertRead({.gate = Extent("a", 1 << 20, 100),
                                              .up = Extent("b", 8191, 4098),
                                              .down = Extent("a", 10, 100)},
                                             files);

  ASSERT_EQ(plan.segments.size(), 3u);
  EXPECT_EQ(files, (std::vector<std::string>{"other", "a", "b"}));
  EXPECT_EQ(plan.landing, (std::array<uint64_t, 3>{4096, 8192 + 4095, 10}));
  EXPECT_EQ(plan.landing_bytes, 4096u + 4096u + 12288u);
}

// Two experts of random weights in a file, and what PackExpert makes of them.
class CheckpointFormatTest
    : public ::testing::TestWithParam<std::tuple<TensorDtype, uint64_t>> {
 protected:
  static constexpr ExpertShape kShape = {.hidden = 40, .intermediate = 24};
  static constexpr size_t kElements = 40 * 24;

  CheckpointFormatTest() {
    std::string name = ::testing::TempDir() + "portolan_ckpt_XXXXXX";
    dir_ = mkdtemp(name.data());
    path_ = dir_ + "/model.safetensors";
  }
  ~CheckpointFormatTest() override { std::filesystem::remove_all(dir_); }

  // Appends a random matrix; `expected` gets it as bf16.
  TensorExtent Append(std::string& content, std::vector<Bf16>& expected) {
    const TensorDtype dtype = std::get<0>(GetParam());
    std::uniform_real_distribution<float> values(-2, 2);
    const uint64_t begin = content.size();
    for (size_t i = 0; i < kElements; ++i) {
      const float value = values(random_);
      float stored = value;
      if (dtype == TensorDtype::kF32) {
        content.append(reinterpret_cast<const char*>(&value), 4);
      } else {
        uint16_t bits = ToFp16(value).bits;
        stored = ToFloat(Fp16{bits});
        if (dtype == TensorDtype::kBf16) {
          bits = ToBf16(value).bits;
          stored = ToFloat(Bf16{bits});
        }
        content.append(reinterpret_cast<const char*>(&bits), 2);
      }
      expected.push_back(ToBf16(stored));
    }
    return {.file = path_,
            .offset = begin,
            .bytes = content.size() - begin,
            .dtype = dtype};
  }

  std::mt19937 random_{7};
  std::string dir_;
  std::string path_;
};

TEST_P(CheckpointFormatTest, ASlotHoldsWhatPackExpertMakes) {
  std::string content(std::get<1>(GetParam()), 'h');
  std::array<ExpertExtents, 2> extents;
  std::array<std::array<std::vector<Bf16>, 3>, 2> weights;
  for (size_t e = 0; e < 2; ++e) {
    extents[e].down = Append(content, weights[e][2]);
    extents[e].gate = Append(content, weights[e][0]);
    extents[e].up = Append(content, weights[e][1]);
  }
  std::ofstream(path_, std::ios::binary) << content;
  const std::vector<ExpertId> ids = {{0, 0}, {0, 1}};
  auto format = CheckpointFormat::Open(kShape, ids, [&](ExpertId id) {
    return extents[static_cast<size_t>(id.expert)];
  });
  ASSERT_TRUE(format.ok()) << format.status();
  FileExpertSource source(*std::move(format),
                          *MakeFileReader(FileReaderKind::kAuto, 4),
                          /*chunk_bytes=*/4096);
  const auto slot_bytes = static_cast<size_t>(ExpertSlotBytes(kShape));
  const AlignedBuffer slot = *AlignedBuffer::Allocate(slot_bytes);
  const AlignedBuffer wanted = *AlignedBuffer::Allocate(slot_bytes);
  const AlignedBuffer staging =
      *AlignedBuffer::Allocate(source.staging_bytes());

  for (const size_t e : {size_t{1}, size_t{0}}) {
    const auto status =
        LoadExpert(source, ids[e], staging.bytes(), slot.bytes());

    ASSERT_TRUE(status.ok()) << status;
    PackExpert(kShape, weights[e][0].data(), weights[e][1].data(),
               weights[e][2].data(), wanted.data());
    EXPECT_TRUE(std::ranges::equal(slot.bytes(), wanted.bytes()));
    EXPECT_EQ(source.LogicalBytes(ids[e]),
              static_cast<int64_t>(extents[e].bytes()));
  }
}

INSTANTIATE_TEST_SUITE_P(
    DtypesAndOffsets, CheckpointFormatTest,
    ::testing::Combine(::testing::Values(TensorDtype::kBf16, TensorDtype::kF16,
                                         TensorDtype::kF32),
                       ::testing::Values(uint64_t{0}, uint64_t{1234},
                                         uint64_t{4095})));

TEST(CheckpointFormatErrorTest, AMissingFileIsNamed) {
  const std::vector<ExpertId> ids = {{0, 0}};
  const auto format = CheckpointFormat::Open(
      {.hidden = 1, .intermediate = 1}, ids, [](ExpertId) {
        const TensorExtent extent = Extent("/nonexistent/shard", 0, 2);
        return ExpertExtents{extent, extent, extent};
      });
  EXPECT_TRUE(absl::IsNotFound(format.status())) << format.status();
}

}  // namespace
}  // namespace portolan
