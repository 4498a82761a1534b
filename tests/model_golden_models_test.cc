// Every directory of tests/data/models, as transformers reads it, opens here.

#include <gtest/gtest.h>

#include <string>

#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/expert_tensors.h"
#include "runtime/model/checkpoint/safetensors.h"

namespace portolan {
namespace {

class GoldenModelTest : public testing::TestWithParam<std::string> {
 protected:
  const std::string dir_ =
      PORTOLAN_SOURCE_DIR "/tests/data/models/" + GetParam();
  const absl::StatusOr<ModelConfig> config_ = LoadModelConfig(dir_);
};

TEST_P(GoldenModelTest, HasEveryExpert) {
  ASSERT_TRUE(config_.ok()) << config_.status();
  const auto checkpoint = Checkpoint::Open(dir_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();

  const auto experts = ExpertTensors::Find(*config_, **checkpoint);

  EXPECT_TRUE(experts.ok()) << experts.status();
}

INSTANTIATE_TEST_SUITE_P(All, GoldenModelTest,
                         testing::Values("qwen3_moe_bf16",
                                         "qwen3_moe_tied_sharded_f32",
                                         "qwen3_moe_fused_bias_f16",
                                         "mixtral_bf16",
                                         "mixtral_fused_window_f32"),
                         [](const auto& param) { return param.param; });

absl::StatusOr<ModelConfig> ConfigOf(const std::string& name) {
  return LoadModelConfig(PORTOLAN_SOURCE_DIR "/tests/data/models/" + name);
}

TEST(GoldenConfigTest, RopeScalingOfBothSpellingsIsRead) {
  const auto linear = ConfigOf("qwen3_moe_fused_bias_f16");
  const auto llama3 = ConfigOf("mixtral_fused_window_f32");

  ASSERT_TRUE(linear.ok() && llama3.ok());
  EXPECT_EQ(linear->rope.scaling, RopeScaling::kLinear);
  EXPECT_EQ(linear->rope.factor, 2);
  EXPECT_EQ(llama3->rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(llama3->rope.original_max_position, 32);
  EXPECT_EQ(llama3->sliding_window, 5);
}

}  // namespace
}  // namespace portolan
