#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "runtime/model/checkpoint/expert_tensors.h"
#include "tests/tiny_checkpoint.h"

namespace portolan {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

// A tiny model on disk, opened.
struct Opened {
  explicit Opened(const TinyModel& model, size_t num_shards = 1) {
    WriteTinyModel(dir, model, num_shards);
    config = LoadModelConfig(dir.path()).value();
    checkpoint = Checkpoint::Open(dir.path()).value();
  }

  std::vector<Bf16> Values(const TensorExtent& extent) const {
    std::vector<Bf16> values(extent.bytes / sizeof(Bf16));
    const absl::Status read =
        checkpoint->Read(extent, std::as_writable_bytes(std::span(values)),
                         ReadPurpose::kExpert);
    PORTOLAN_CHECK(read.ok());
    return values;
  }

  TempDir dir;
  ModelConfig config;
  std::unique_ptr<Checkpoint> checkpoint;
};

TEST(ExpertTensorsTest, FindsSeparateExpertsOfQwen3Moe) {
  const TinyModel model;
  const Opened opened(model);

  const auto experts = ExpertTensors::Find(opened.config, *opened.checkpoint);

  ASSERT_TRUE(experts.ok()) << experts.status();
  const int64_t size = model.hidden * model.intermediate;
  const ExpertExtents& extents = experts->ExpertExtentsOf({1, 2});
  const std::string name = "model.layers.1.mlp.experts.2.";
  EXPECT_THAT(opened.Values(extents.gate),
              ElementsAreArray(TinyWeights(name + "gate_proj.weight", size)));
  EXPECT_THAT(opened.Values(extents.up),
              ElementsAreArray(TinyWeights(name + "up_proj.weight", size)));
  EXPECT_THAT(opened.Values(extents.down),
              ElementsAreArray(TinyWeights(name + "down_proj.weight", size)));
}

TEST(ExpertTensorsTest, MixtralsGateIsW1ItsUpW3ItsDownW2) {
  const TinyModel model{.mixtral = true};
  const Opened opened(model, /*num_shards=*/3);

  const auto experts = ExpertTensors::Find(opened.config, *opened.checkpoint);

  ASSERT_TRUE(experts.ok()) << experts.status();
  const int64_t size = model.hidden * model.intermediate;
  const ExpertExtents& extents = experts->ExpertExtentsOf({0, 1});
  const std::string name = "model.layers.0.block_sparse_moe.experts.1.";
  EXPECT_THAT(opened.Values(extents.gate),
              ElementsAreArray(TinyWeights(name + "w1.weight", size)));
  EXPECT_THAT(opened.Values(extents.up),
              ElementsAreArray(TinyWeights(name + "w3.weight", size)));
  EXPECT_THAT(opened.Values(extents.down),
              ElementsAreArray(TinyWeights(name + "w2.weight", size)));
}

TEST(ExpertTensorsTest, CutsFusedExpertsGateRowsFirst) {
  for (bool mixtral : {false, true}) {
    const TinyModel model{.mixtral = mixtral, .fused = true};
    const Opened opened(model);

    const auto experts = ExpertTensors::Find(opened.config, *opened.checkpoint);

    ASSERT_TRUE(experts.ok()) << experts.status();
    const int64_t size = model.hidden * model.intermediate;
    const ExpertExtents& extents = experts->ExpertExtentsOf({1, 2});
    const std::string gate_up = model.block(1) + ".experts.gate_up_proj";
    const std::string down = model.block(1) + ".experts.down_proj";
    EXPECT_THAT(opened.Values(extents.gate),
                ElementsAreArray(TinyWeights(gate_up, size, 4 * size)));
    EXPECT_THAT(opened.Values(extents.up),
                ElementsAreArray(TinyWeights(gate_up, size, 5 * size)));
    EXPECT_THAT(opened.Values(extents.down),
                ElementsAreArray(TinyWeights(down, size, 2 * size)));
  }
}

TEST(ExpertTensorsTest, TotalBytesAreThoseOfAllExperts) {
  const Opened opened({.dense_layer = 0, .dtype = "F32"});

  const auto experts = ExpertTensors::Find(opened.config, *opened.checkpoint);

  ASSERT_TRUE(experts.ok()) << experts.status();
  EXPECT_FALSE(experts->IsMoeLayer(0));
  EXPECT_TRUE(experts->IsMoeLayer(1));
  EXPECT_EQ(experts->total_bytes(), uint64_t{3 * 3 * 48 * 24 * 4});
}

TEST(ExpertTensorsTest, AMissingExpertIsNamed) {
  const TinyModel model{.num_experts = 3};
  Opened opened(model);
  opened.config.num_experts = 4;

  const auto experts = ExpertTensors::Find(opened.config, *opened.checkpoint);

  EXPECT_TRUE(absl::IsNotFound(experts.status()));
  EXPECT_THAT(std::string(experts.status().message()),
              AllOf(HasSubstr("model.layers.0.mlp.experts.3.gate_proj.weight"),
                    HasSubstr("model.safetensors")));
}

TEST(ExpertTensorsTest, AnExpertOfAnotherShapeIsRefused) {
  Opened opened(TinyModel{});
  opened.config.expert_intermediate = 32;

  const auto experts = ExpertTensors::Find(opened.config, *opened.checkpoint);

  EXPECT_THAT(
      std::string(experts.status().message()),
      AllOf(HasSubstr("wanted shape [32, 48]"), HasSubstr("found [24, 48]")));
}

TEST(ExpertTensorsTest, AMoeLayerWithoutGateNamesTheNamesTried) {
  Opened opened({.dense_layer = 1});
  opened.config.moe_layers[1] = true;

  const auto experts = ExpertTensors::Find(opened.config, *opened.checkpoint);

  EXPECT_THAT(std::string(experts.status().message()),
              HasSubstr("model.layers.1.mlp.gate.weight"));
}

}  // namespace
}  // namespace portolan
