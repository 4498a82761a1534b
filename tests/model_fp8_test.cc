// Checkpoints whose weights are fp8 with a scale per block, against the same
// model with the products stored as bf16.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "experts/checkpoint_format.h"
#include "experts/expert_slot.h"
#include "experts/file_expert_source.h"
#include "experts/weight_conversion.h"
#include "runtime/model/checkpoint/dense_weights.h"
#include "runtime/model/checkpoint/expert_reader.h"
#include "runtime/model/checkpoint/unused_tensors.h"
#include "tests/tiny_checkpoint.h"

namespace portolan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kBlockRows = 16;
constexpr int64_t kBlockCols = 20;  // divides neither 48 nor 24

// By its definition: sign, 4 bits of exponent with bias 7, 3 of mantissa.
float E4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15;
  const int mantissa = bits & 7;
  const double value = exponent == 0 ? std::ldexp(mantissa, -9)
                                     : std::ldexp(8 + mantissa, exponent - 10);
  return static_cast<float>(bits & 0x80 ? -value : value);
}

struct Fp8Matrix {
  TestTensor weight;
  TestTensor scales;
  TestTensor bf16;
};

// The bits and scales follow from the tensor's name; no NaN among them.
Fp8Matrix MakeFp8(const std::string& name, int64_t rows, int64_t cols) {
  const int64_t row_blocks = (rows + kBlockRows - 1) / kBlockRows;
  const int64_t col_blocks = (cols + kBlockCols - 1) / kBlockCols;
  std::vector<uint8_t> bits;
  std::vector<float> scales;
  std::vector<Bf16> products;
  for (int64_t i = 0; i < row_blocks * col_blocks; ++i) {
    scales.push_back(0.01f + 0.003f * TinyWeight(name + "s", i));
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const float weight = TinyWeight(name, r * cols + c);
      auto code = static_cast<uint8_t>(static_cast<int>(weight * 64) + 64);
      if (code % 128 >= 0x78) code = static_cast<uint8_t>(code - 0x20);
      if (c % 3 == 0) code |= 0x80;
      bits.push_back(code);
      const float scale = scales[static_cast<size_t>(
          r / kBlockRows * col_blocks + c / kBlockCols)];
      products.push_back(ToBf16(E4m3(code) * scale));
    }
  }
  return {{name, "F8_E4M3", {rows, cols}, BytesOfValues(bits)},
          {name + "_scale_inv",
           "F32",
           {row_blocks, col_blocks},
           BytesOfValues(scales)},
          {name, "BF16", {rows, cols}, BytesOfValues(products)}};
}

bool IsFp8(const TestTensor& tensor) {
  return tensor.name.find("_proj.weight") != std::string::npos;
}

nlohmann::json Fp8Config(const TinyModel& model) {
  nlohmann::json config = TinyConfig(model);
  config["quantization_config"] = {
      {"quant_method", "fp8"},
      {"fmt", "e4m3"},
      {"activation_scheme", "dynamic"},
      {"weight_block_size", {kBlockRows, kBlockCols}}};
  return config;
}

using Edit = std::function<void(std::vector<TestTensor>&)>;

// A tiny model with every projection in fp8, and its bf16 twin.
struct Twins {
  explicit Twins(const Edit& edit = [](std::vector<TestTensor>&) {}) {
    std::vector<TestTensor> stored;
    std::vector<TestTensor> plain;
    for (const TestTensor& tensor : TinyTensors(model)) {
      if (!IsFp8(tensor)) {
        stored.push_back(tensor);
        plain.push_back(tensor);
        continue;
      }
      Fp8Matrix matrix = MakeFp8(tensor.name, tensor.shape[0], tensor.shape[1]);
      stored.push_back(std::move(matrix.weight));
      stored.push_back(std::move(matrix.scales));
      plain.push_back(std::move(matrix.bf16));
    }
    edit(stored);
    fp8.Write("config.json", Fp8Config(model).dump());
    fp8.Write("model.safetensors", SafetensorsFile(stored));
    bf16.Write("config.json", TinyConfig(model).dump());
    bf16.Write("model.safetensors", SafetensorsFile(plain));
  }

  const TinyModel model{.dense_layer = 0};
  TempDir fp8;
  TempDir bf16;
};

struct Opened {
  explicit Opened(const TempDir& dir,
                  Checkpoint::ReadObserver observer = nullptr)
      : config(LoadModelConfig(dir.path()).value()),
        checkpoint(Checkpoint::Open(dir.path(), std::move(observer)).value()) {}

  absl::StatusOr<ExpertTensors> Experts() const {
    return ExpertTensors::Find(config, *checkpoint);
  }
  absl::StatusOr<DenseWeights> Dense() const {
    return DenseWeights::Load(config, *checkpoint);
  }
  // The status of whichever fails first.
  absl::Status Load() const {
    const auto experts = Experts();
    return experts.ok() ? Dense().status() : experts.status();
  }

  ModelConfig config;
  std::unique_ptr<Checkpoint> checkpoint;
};

TEST(Fp8Test, TheReferenceOfThisTestKnowsTheFormat) {
  EXPECT_EQ(E4m3(0x38), 1.0f);
  EXPECT_EQ(E4m3(0x7e), 448.0f);
  EXPECT_EQ(E4m3(0x01), 0x1p-9f);
  EXPECT_EQ(E4m3(0xb8), -1.0f);
}

TEST(Fp8Test, EveryCodeIsMultipliedInF32AndRoundedOnce) {
  const float scale = 0.0123f;
  const std::string scale_bytes = BytesOfValues(std::vector<float>{scale});
  const BlockScales scales = {.file = "",
                              .offset = 0,
                              .bytes = 4,
                              .dtype = TensorDtype::kF32,
                              .block_rows = 128,
                              .block_cols = 300,
                              .cols = 256};
  std::vector<std::byte> codes;
  for (int i = 0; i < 256; ++i) codes.push_back(static_cast<std::byte>(i));
  std::vector<Bf16> values(256);

  ASSERT_TRUE(ConvertBlocksToBf16(scales, std::as_bytes(std::span(scale_bytes)),
                                  codes, 0, values));

  for (int i = 0; i < 256; ++i) {
    const Bf16 value = values[static_cast<size_t>(i)];
    if (i % 128 == 0x7f) {
      EXPECT_TRUE(std::isnan(ToFloat(value)));
    } else {
      const float product = E4m3(static_cast<uint8_t>(i)) * scale;
      EXPECT_EQ(ToFloat(value), ToFloat(ToBf16(product))) << i;
    }
  }
}

TEST(Fp8Test, DenseWeightsAreThoseOfTheBf16Twin) {
  const Twins twins;
  const auto fp8 = Opened(twins.fp8).Dense();
  const auto bf16 = Opened(twins.bf16).Dense();
  ASSERT_TRUE(fp8.ok()) << fp8.status();
  ASSERT_TRUE(bf16.ok()) << bf16.status();

  ASSERT_EQ(fp8->buffers.size(), bf16->buffers.size());
  for (size_t i = 0; i < fp8->buffers.size(); ++i) {
    EXPECT_TRUE(
        std::ranges::equal(fp8->buffers[i].bytes(), bf16->buffers[i].bytes()))
        << i;
  }
}

TEST(Fp8Test, ExpertsAreThoseOfTheBf16TwinByBothReaders) {
  const Twins twins;
  const Opened fp8(twins.fp8);
  const Opened bf16(twins.bf16);
  const ExpertTensors tensors = fp8.Experts().value();
  const ExpertTensors plain = bf16.Experts().value();
  CheckpointExpertSource blocking(tensors, *fp8.checkpoint);
  CheckpointExpertSource reference(plain, *bf16.checkpoint);
  const std::vector<ExpertId> ids = {{1, 0}, {1, 1}, {1, 2}};
  FileExpertSource direct(
      *CheckpointFormat::Open(
          tensors.shape(), ids,
          [&](ExpertId id) { return tensors.ExpertExtentsOf(id); }),
      *MakeFileReader(FileReaderKind::kAuto, 2), /*chunk_bytes=*/4096);
  const auto bytes = static_cast<size_t>(ExpertSlotBytes(tensors.shape()));
  const AlignedBuffer slot = *AlignedBuffer::Allocate(bytes);
  const AlignedBuffer wanted = *AlignedBuffer::Allocate(bytes);
  const AlignedBuffer staging =
      *AlignedBuffer::Allocate(direct.staging_bytes());

  for (const ExpertId id : ids) {
    ASSERT_TRUE(reference.Read(id, wanted.bytes()).ok());
    ASSERT_TRUE(blocking.Read(id, slot.bytes()).ok());
    EXPECT_TRUE(std::ranges::equal(slot.bytes(), wanted.bytes()));
    std::ranges::fill(slot.bytes(), std::byte{1});
    const absl::Status loaded =
        LoadExpert(direct, id, staging.bytes(), slot.bytes());
    ASSERT_TRUE(loaded.ok()) << loaded;
    EXPECT_TRUE(std::ranges::equal(slot.bytes(), wanted.bytes()));
    EXPECT_EQ(direct.LogicalBytes(id),
              static_cast<int64_t>(tensors.ExpertExtentsOf(id).bytes()));
  }
}

TEST(Fp8Test, RanksReadEveryByteOfTheirExpertsOnceAndNoOther) {
  const Twins twins;
  std::map<std::pair<std::string, uint64_t>, uint64_t> read;
  uint64_t sum = 0;
  uint64_t total = 0;
  for (int rank = 0; rank < 2; ++rank) {
    const Opened opened(twins.fp8, [&](const TensorExtent& range,
                                       ReadPurpose purpose) {
      EXPECT_EQ(purpose, ReadPurpose::kExpert);
      EXPECT_TRUE(read.emplace(std::pair(range.file, range.offset), range.bytes)
                      .second);
    });
    const ExpertTensors tensors = opened.Experts().value();
    total = tensors.total_bytes();
    CheckpointExpertSource source(tensors, *opened.checkpoint);
    std::vector<std::byte> slot(
        static_cast<size_t>(ExpertSlotBytes(tensors.shape())));
    for (int e = rank; e < 3; e += 2) {
      ASSERT_TRUE(source.Read({1, e}, slot).ok());
    }
    sum += opened.checkpoint->bytes_read().expert;
  }
  EXPECT_EQ(sum, total);
}

TestTensor& Named(std::vector<TestTensor>& tensors, const std::string& name) {
  for (TestTensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  ADD_FAILURE() << name;
  return tensors[0];
}

TEST(Fp8Test, MissingAndMalformedScalesAreNamed) {
  const std::string expert = "model.layers.1.mlp.experts.1.up_proj.weight";
  const std::string dense = "model.layers.0.self_attn.k_proj.weight";
  for (const std::string& weight : {expert, dense}) {
    const std::string name = weight + "_scale_inv";
    const auto load = [&](const Edit& edit) {
      const Twins twins(edit);
      return Opened(twins.fp8).Load();
    };

    const absl::Status missing = load([&](std::vector<TestTensor>& tensors) {
      std::erase_if(tensors,
                    [&](const TestTensor& t) { return t.name == name; });
    });
    EXPECT_TRUE(absl::IsNotFound(missing)) << missing;
    EXPECT_THAT(std::string(missing.message()), HasSubstr(name));

    const absl::Status shape = load([&](std::vector<TestTensor>& tensors) {
      TestTensor& scales = Named(tensors, name);
      scales.shape = {static_cast<int64_t>(scales.bytes.size() / 4)};
    });
    EXPECT_TRUE(absl::IsInvalidArgument(shape)) << shape;
    EXPECT_THAT(std::string(shape.message()),
                AllOf(HasSubstr(name), HasSubstr("wanted shape")));

    const absl::Status dtype = load([&](std::vector<TestTensor>& tensors) {
      TestTensor& scales = Named(tensors, name);
      scales.dtype = "F8_E4M3";
      scales.bytes.resize(scales.bytes.size() / 4);
    });
    EXPECT_TRUE(absl::IsUnimplemented(dtype)) << dtype;
    EXPECT_THAT(std::string(dtype.message()), HasSubstr(name));
  }
}

TEST(Fp8Test, AScaleThatIsNotFiniteIsAnErrorWhereItIsRead) {
  const std::string expert = "model.layers.1.mlp.experts.1.up_proj.weight";
  const std::string dense = "model.layers.0.mlp.down_proj.weight";
  const Twins twins([&](std::vector<TestTensor>& tensors) {
    for (const std::string& weight : {expert, dense}) {
      TestTensor& scales = Named(tensors, weight + "_scale_inv");
      const std::string infinity = BytesOfValues(std::vector<float>{INFINITY});
      scales.bytes.replace(0, 4, infinity);
    }
  });
  const Opened opened(twins.fp8);

  const absl::Status loaded = opened.Dense().status();
  EXPECT_TRUE(absl::IsDataLoss(loaded)) << loaded;
  EXPECT_THAT(std::string(loaded.message()), HasSubstr(dense + "_scale_inv"));

  const ExpertTensors tensors = opened.Experts().value();
  CheckpointExpertSource source(tensors, *opened.checkpoint);
  std::vector<std::byte> slot(
      static_cast<size_t>(ExpertSlotBytes(tensors.shape())));
  EXPECT_TRUE(source.Read({1, 0}, slot).ok());
  const absl::Status read = source.Read({1, 1}, slot);
  EXPECT_TRUE(absl::IsDataLoss(read)) << read;
  EXPECT_THAT(std::string(read.message()), HasSubstr("expert L1/E1"));
}

TEST(Fp8Test, Fp8WithoutABlockSizeIsRefused) {
  const Twins twins;
  twins.fp8.Write("config.json", TinyConfig(twins.model).dump());

  const absl::Status status = Opened(twins.fp8).Load();

  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("weight_block_size"));
}

TEST(Fp8Test, ScalesOfWeightsThatAreReadCountAsUsed) {
  const Twins twins;
  const Opened fp8(twins.fp8);

  const auto notice =
      CheckUnusedTensors(fp8.config, *fp8.checkpoint, fp8.Experts().value());

  ASSERT_TRUE(notice.ok()) << notice.status();
  EXPECT_EQ(*notice, "");
}

}  // namespace
}  // namespace portolan
