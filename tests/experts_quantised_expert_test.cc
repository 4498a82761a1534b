#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "experts/expert_ffn.h"
#include "experts/expert_pack.h"
#include "experts/expert_slot.h"
#include "experts/file_expert_source.h"
#include "experts/quantised_expert.h"
#include "experts/source_factory.h"
#include "tests/checkpoint_files.h"
#include "tests/kernel_test_util.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;

constexpr WeightFormat kFormats[] = {WeightFormat::kInt8, WeightFormat::kInt4};
const ExpertShape kShapes[] = {{.hidden = 64, .intermediate = 32},
                               {.hidden = 100, .intermediate = 72}};

AlignedBuffer Slot(const ExpertShape& shape,
                   WeightFormat format = WeightFormat::kBf16) {
  return *AlignedBuffer::Allocate(
      static_cast<size_t>(ExpertSlotBytes(shape, format)));
}

// Experts of random weights; expert 2 of layer 1 has `bad` in its up matrix.
class RandomExperts final : public ExpertSource {
 public:
  explicit RandomExperts(const ExpertShape& shape) : shape_(shape) {}

  absl::Status Read(ExpertId id, std::span<std::byte> slot) override {
    Random random(static_cast<uint64_t>(id.layer * 100 + id.expert));
    const int64_t i = shape_.intermediate;
    const int64_t h = shape_.hidden;
    const auto matrix = [&](int64_t rows, int64_t cols) {
      std::vector<float> values(static_cast<size_t>(rows * cols));
      for (float& value : values) value = random.Uniform() / 16;
      return values;
    };
    const std::vector<Bf16> gate = RoundAll(matrix(i, h));
    std::vector<float> up = matrix(i, h);
    if (id == ExpertId{1, 2}) up[77] = bad;
    const std::vector<Bf16> down = RoundAll(matrix(h, i));
    PackExpert(shape_, gate.data(), RoundAll(up).data(), down.data(),
               slot.data());
    return absl::OkStatus();
  }

  float bad = 0;

 private:
  const ExpertShape shape_;
};

// The bf16 slot that a quantised one stands for.
AlignedBuffer Dequantised(const ExpertShape& shape, WeightFormat format,
                          const AlignedBuffer& slot) {
  AlignedBuffer exact = Slot(shape);
  const int64_t strip = NumInputBlocks(shape.hidden);
  DequantiseTiles(format, slot.data(),
                  NumOutputBlocks(ExpertGateUpOutputs(shape)) * strip,
                  exact.As<Bf16>().data());
  DequantiseTiles(
      format, slot.data() + ExpertDownOffset(shape, format),
      NumOutputBlocks(shape.hidden) * NumInputBlocks(shape.intermediate),
      reinterpret_cast<Bf16*>(exact.data() + ExpertDownOffset(shape)));
  return exact;
}

std::vector<float> RunExpert(const ExpertShape& shape, WeightFormat format,
                             const AlignedBuffer& slot, Kernels& kernels,
                             int32_t rows) {
  Random random(9);
  const Activations x(ActivationDtype::kBf16, random.Matrix(rows, shape.hidden),
                      shape.hidden);
  ExpertFfn ffn(shape, ActivationDtype::kBf16, kernels, rows,
                /*profile=*/nullptr, format);
  std::vector<int32_t> selections;
  for (int32_t i = 0; i < rows; ++i) selections.push_back(i);
  const ExpertFfn::Work work = {.slot = slot.data(), .selections = selections};
  std::vector<float> out(static_cast<size_t>(rows * shape.hidden));
  ffn.Run(std::span(&work, 1), x.view, selections, out.data(), shape.hidden);
  return out;
}

TEST(QuantisedExpertTest, SlotsShrinkByNearlyTheRatioOfTheBytes) {
  const ExpertShape large = {.hidden = 2048, .intermediate = 768};
  const auto bf16 = static_cast<double>(ExpertSlotBytes(large));

  EXPECT_NEAR(
      bf16 / static_cast<double>(ExpertSlotBytes(large, WeightFormat::kInt8)),
      2 / 1.03125, 0.01);
  EXPECT_NEAR(
      bf16 / static_cast<double>(ExpertSlotBytes(large, WeightFormat::kInt4)),
      2 / 0.53125, 0.02);
}

TEST(QuantisedExpertTest, HasTheBitsOfTheExpertThatItStandsForOnEveryPath) {
  ThreadPool pool(1);
  Kernels scalar(CpuPath::kScalar, pool);
  for (const ExpertShape& shape : kShapes) {
    for (const WeightFormat format : kFormats) {
      RandomExperts experts(shape);
      QuantisingSource source(shape, format, experts);
      const AlignedBuffer slot = Slot(shape, format);
      ASSERT_TRUE(source.Read({0, 1}, slot.bytes()).ok());
      const AlignedBuffer exact = Dequantised(shape, format, slot);
      for (const TestedPath& path : TestedPaths()) {
        if (path.table == nullptr) continue;
        Kernels kernels(CpuPath::kScalar, *path.table, pool);
        for (const int32_t rows : {1, 2, 3, 4, 5, 7, 16, 33}) {
          EXPECT_TRUE(SameBits(
              RunExpert(shape, format, slot, kernels, rows),
              RunExpert(shape, WeightFormat::kBf16, exact, scalar, rows)))
              << path.name << " " << rows;
        }
      }
    }
  }
}

TEST(QuantisedExpertTest, ErrorsAreThoseOfTheMatrices) {
  const ExpertShape shape = kShapes[1];
  for (const WeightFormat format : kFormats) {
    RandomExperts experts(shape);
    QuantisingSource source(shape, format, experts);
    const AlignedBuffer slot = Slot(shape, format);
    for (int32_t e = 0; e < 3; ++e) {
      ASSERT_TRUE(source.Read({0, e}, slot.bytes()).ok());
    }

    ASSERT_EQ(source.errors().size(), 3u);
    for (const ExpertQuantisation& error : source.errors()) {
      for (const QuantisationError& matrix :
           {error.gate, error.up, error.down}) {
        const double rms = matrix.RmsRelative();
        // Uniform weights: a step of s gives an error of s / sqrt(12).
        EXPECT_GT(rms, format == WeightFormat::kInt8 ? 0.002 : 0.04);
        EXPECT_LT(rms, format == WeightFormat::kInt8 ? 0.008 : 0.09);
        EXPECT_GT(matrix.MaxRelative(), 0);
      }
    }
    EXPECT_THAT(FormatQuantisation(source.errors()), HasSubstr("0 down"));
    const auto json =
        nlohmann::json::parse(QuantisationJson(format, source.errors()));
    EXPECT_EQ(json["tensors"].size(), 9u);
    EXPECT_EQ(json["tensors"][5]["matrix"], "down");
    EXPECT_EQ(json["tensors"][5]["rms_relative_error"],
              source.errors()[1].down.RmsRelative());
  }
}

TEST(QuantisedExpertTest, WeightsThatDoNotFitAreNamed) {
  const ExpertShape shape = kShapes[0];
  RandomExperts experts(shape);
  experts.bad = std::numeric_limits<float>::infinity();
  QuantisingSource source(shape, WeightFormat::kInt8, experts);
  const AlignedBuffer slot = Slot(shape, WeightFormat::kInt8);

  const absl::Status status = source.Read({1, 2}, slot.bytes());

  ASSERT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(std::string(status.message()),
            "expert L1/E2: up: a weight is not finite or too large for int8");
}

class QuantisedPackTest : public ::testing::Test {
 protected:
  PackIdentity Identity(WeightFormat format) const {
    return {
        .fingerprint = 0x0123456789abcdefu,
        .numerics = std::string("order 1, ").append(WeightFormatName(format)),
        .num_layers = 2,
        .num_experts = 3,
        .shape = shape_,
        .format = format,
        .slot_bytes = ExpertSlotBytes(shape_, format)};
  }

  std::string Path(WeightFormat format) const {
    return dir_.File(PackFileName(format));
  }

  void Write(WeightFormat format) {
    RandomExperts experts(shape_);
    QuantisingSource source(shape_, format, experts);
    const absl::Status status = WritePack(Path(format), Identity(format),
                                          source, [](int64_t, int64_t) {});
    ASSERT_TRUE(status.ok()) << status;
  }

  absl::StatusOr<ChosenSource> Choose(WeightFormat format) {
    const std::vector<ExpertId> owned;
    return MakeExpertSource(
        {.model_dir = dir_.path(), .reader = FileReaderKind::kPread},
        Identity(format), owned, [](ExpertId) { return ExpertExtents{}; });
  }

  static std::string Message(const absl::Status& status) {
    return std::string(status.message());
  }

  const ExpertShape shape_ = kShapes[0];
  TempDir dir_;
};

TEST_F(QuantisedPackTest, GivesBackTheQuantisedExperts) {
  for (const WeightFormat format : kFormats) {
    Write(format);
    auto chosen = Choose(format);
    ASSERT_TRUE(chosen.ok()) << chosen.status();
    EXPECT_THAT(chosen->source->name(), HasSubstr("expert pack"));
    RandomExperts experts(shape_);
    QuantisingSource source(shape_, format, experts);
    const AlignedBuffer expected = Slot(shape_, format);
    const AlignedBuffer slot = Slot(shape_, format);
    for (const ExpertId id : {ExpertId{0, 0}, ExpertId{1, 2}}) {
      ASSERT_TRUE(source.Read(id, expected.bytes()).ok());
      ASSERT_TRUE(LoadExpert(*chosen->source, id, {}, slot.bytes()).ok());
      EXPECT_EQ(std::memcmp(slot.data(), expected.data(), expected.size()), 0);
    }
  }
}

TEST_F(QuantisedPackTest, WithoutAPackTheRemedyIsNamed) {
  const absl::Status status = Choose(WeightFormat::kInt4).status();

  ASSERT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(Message(status), HasSubstr("experts-int4.portolan-pack"));
  EXPECT_THAT(Message(status), HasSubstr("portolan pack --quantize int4"));
}

TEST_F(QuantisedPackTest, APackOfAnotherFormatIsRefusedByName) {
  Write(WeightFormat::kInt8);
  std::filesystem::rename(Path(WeightFormat::kInt8), Path(WeightFormat::kInt4));

  const absl::Status status = Choose(WeightFormat::kInt4).status();

  ASSERT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Message(status),
              HasSubstr("its weight format is int8, wanted is int4; run "
                        "portolan pack --quantize int4 again"));
}

TEST_F(QuantisedPackTest, Bf16NeverComesFromAQuantisedPack) {
  Write(WeightFormat::kInt8);
  auto beside = Choose(WeightFormat::kBf16);
  ASSERT_TRUE(beside.ok()) << beside.status();
  EXPECT_TRUE(beside->notices.empty());
  EXPECT_THAT(beside->source->name(), HasSubstr("checkpoint"));

  std::filesystem::rename(Path(WeightFormat::kInt8), Path(WeightFormat::kBf16));
  auto renamed = Choose(WeightFormat::kBf16);

  ASSERT_TRUE(renamed.ok()) << renamed.status();
  ASSERT_EQ(renamed->notices.size(), 1u);
  EXPECT_THAT(renamed->notices[0], HasSubstr("weight format is int8"));
  EXPECT_THAT(renamed->source->name(), HasSubstr("checkpoint"));
}

TEST_F(QuantisedPackTest, DamageIsAnErrorAndNotANotice) {
  const WeightFormat format = WeightFormat::kInt8;
  Write(format);
  const auto bytes = std::filesystem::file_size(Path(format));
  std::filesystem::resize_file(Path(format), bytes - 1);
  const absl::Status truncated = Choose(format).status();
  EXPECT_TRUE(absl::IsDataLoss(truncated));
  EXPECT_THAT(Message(truncated), HasSubstr("portolan pack --quantize int8"));

  Write(format);
  std::fstream file(Path(format),
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(8192 + 100);
  file.put(char{0x55});
  file.close();
  auto chosen = Choose(format);
  ASSERT_TRUE(chosen.ok()) << chosen.status();
  const AlignedBuffer slot = Slot(shape_, format);
  const absl::Status record =
      LoadExpert(*chosen->source, {0, 0}, {}, slot.bytes());
  ASSERT_TRUE(absl::IsDataLoss(record));
  EXPECT_THAT(Message(record), HasSubstr("the record of expert L0/E0"));
  EXPECT_THAT(Message(record), HasSubstr("portolan pack --quantize int8"));
}

}  // namespace
}  // namespace portolan
