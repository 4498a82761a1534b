#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "runtime/model/checkpoint/unused_tensors.h"
#include "tests/tiny_checkpoint.h"

namespace portolan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

absl::StatusOr<std::string> CheckDir(const std::string& dir) {
  const ModelConfig config = LoadModelConfig(dir).value();
  const auto checkpoint = Checkpoint::Open(dir).value();
  return CheckUnusedTensors(config, *checkpoint,
                            ExpertTensors::Find(config, *checkpoint).value());
}

// Of the tensors of `model` under the config of `described`.
absl::StatusOr<std::string> Check(const TinyModel& model,
                                  const nlohmann::json& described) {
  const TempDir dir;
  WriteTinyModel(dir, model);
  dir.Write("config.json", described.dump());
  return CheckDir(dir.path());
}

absl::StatusOr<std::string> Check(const TinyModel& model) {
  return Check(model, TinyConfig(model));
}

std::string Error(const absl::StatusOr<std::string>& checked) {
  EXPECT_TRUE(absl::IsInvalidArgument(checked.status())) << checked.status();
  return std::string(checked.status().message());
}

TEST(UnusedTensorsTest, ModelsThatUseAllTheirTensorsSayNothing) {
  for (const TinyModel& model :
       {TinyModel{}, TinyModel{.mixtral = true}, TinyModel{.fused = true},
        TinyModel{.mixtral = true, .fused = true}, TinyModel{.tied = true},
        TinyModel{.bias = true}, TinyModel{.dense_layer = 1}}) {
    const auto notice = Check(model);
    ASSERT_TRUE(notice.ok()) << notice.status();
    EXPECT_EQ(*notice, "");
  }
}

TEST(UnusedTensorsTest, TheBundledModelSaysNothing) {
  const auto notice = CheckDir(PORTOLAN_SOURCE_DIR "/models/tiny-moe");
  ASSERT_TRUE(notice.ok()) << notice.status();
  EXPECT_EQ(*notice, "");
}

TEST(UnusedTensorsTest, TablesOfRotaryEmbeddingsAreNotWorthAWord) {
  const auto notice =
      Check({.further = {"model.layers.0.self_attn.rotary_emb.inv_freq",
                         "model.rotary_emb.inv_freq"}});
  ASSERT_TRUE(notice.ok()) << notice.status();
  EXPECT_EQ(*notice, "");
}

TEST(UnusedTensorsTest, LayersBeyondThoseThatRunAreOneNotice) {
  const auto notice =
      Check({.num_layers = 2, .further = {"model.layers.61.eh_proj.weight"}},
            TinyConfig({.num_layers = 1}));

  ASSERT_TRUE(notice.ok()) << notice.status();
  // 8 dense tensors, the gate and 9 of experts, beside that of layer 61.
  EXPECT_THAT(
      *notice,
      AllOf(HasSubstr(": 19 tensors are not used: "),
            HasSubstr("model.layers.1.input_layernorm.weight, model.layers.1."
                      "mlp.experts.0.down_proj.weight, "),
            HasSubstr(", and 16 more (num_hidden_layers is 1)")));
}

TEST(UnusedTensorsTest, BiasesOfAttentionAreRefusedWithTheFieldThatTakesThem) {
  const std::string error = Error(Check({.bias = true}, TinyConfig({})));

  EXPECT_THAT(
      error,
      AllOf(HasSubstr("8 tensors are not used, so the output would not be that "
                      "of these weights"),
            HasSubstr("model.layers.0.self_attn.k_proj.bias, "),
            HasSubstr("attention_bias is not true in "),
            HasSubstr("set \"attention_bias\": true in ")));
}

TEST(UnusedTensorsTest, ABiasThatNoConfigTurnsOnIsRefused) {
  for (const auto& [model, said] :
       std::vector<std::pair<TinyModel, const char*>>{
           {{.mixtral = true,
   .further = {"model.layers.0.self_attn.q_proj.bias"}},
            "mixtral has no biases"},
           {{.further = {"model.layers.1.input_layernorm.bias"}},
            "qwen3_moe has no such biases"},
           {{.further = {"model.layers.1.mlp.gate.e_score_correction_bias"}},
            "qwen3_moe has no such biases"},
           {{.further = {"lm_head.bias"}}, "qwen3_moe has no such biases"},
           {{.further = {"model.norm.bias"}},
            "qwen3_moe has no such biases"}}) {
    EXPECT_THAT(Error(Check(model)),
                AllOf(HasSubstr("1 tensor is not used, so the output"),
                      HasSubstr(model.further[0]), HasSubstr(said),
                      HasSubstr("use the config.json that belongs to these "
                                "weights"),
                      Not(HasSubstr("set \""))));
  }
}

TEST(UnusedTensorsTest, ASharedExpertOfALayerThatRunsIsRefused) {
  EXPECT_THAT(
      Error(Check({.further = {"model.layers.0.mlp.shared_expert.up_proj."
                               "weight",
                               "model.layers.0.mlp.shared_expert_gate."
                               "weight"}})),
      AllOf(HasSubstr("2 tensors are not used, so the output"),
            HasSubstr("shared_expert_gate.weight"),
            HasSubstr("qwen3_moe has no shared experts")));
  // One of a layer that does not run changes nothing.
  EXPECT_TRUE(
      Check({.further = {"model.layers.2.mlp.shared_expert.up_proj.weight"}})
          .ok());
}

TEST(UnusedTensorsTest, WhatALayerOfTheFamilyDoesNotHaveIsRefused) {
  EXPECT_THAT(Error(Check({.mixtral = true,
                           .further = {"model.layers.1.self_attn.q_norm."
                                       "weight"}})),
              AllOf(HasSubstr("q_norm.weight"),
                    HasSubstr("a layer of this mixtral has no such tensors")));
}

TEST(UnusedTensorsTest, ADenseMlpBesideTheExpertsOfALayerIsRefused) {
  EXPECT_THAT(Error(Check({.further = {"model.layers.1.mlp.up_proj.weight"}})),
              HasSubstr("model.layers.1.mlp.up_proj.weight"));
}

TEST(UnusedTensorsTest, WhatCannotChangeTheOutputIsANotice) {
  for (const auto& [name, said] :
       std::vector<std::pair<const char*, const char*>>{
           {"model.layers.0.mlp.experts.3.up_proj.weight", "num_experts is 3"},
           {"model.layers.0.self_attn.k_proj.k_scale", "scales of what is not"},
           {"mtp.fc.weight", "qwen3_moe has no such tensors"}}) {
    const auto notice = Check({.further = {name}});
    ASSERT_TRUE(notice.ok()) << notice.status();
    EXPECT_THAT(*notice, AllOf(HasSubstr(": 1 tensor is not used: "),
                               HasSubstr(name), HasSubstr(said)));
  }
}

TEST(UnusedTensorsTest, AHeadBesideTiedEmbeddingsIsANotice) {
  const auto notice = Check({}, TinyConfig({.tied = true}));

  ASSERT_TRUE(notice.ok()) << notice.status();
  EXPECT_THAT(*notice, HasSubstr("lm_head.weight (tie_word_embeddings"));
}

TEST(UnusedTensorsTest, ShardsAreLookedAtTogether) {
  const TempDir dir;
  WriteTinyModel(dir, {.further = {"mtp.a.weight", "mtp.b.weight"}},
                 /*num_shards=*/3);

  const auto notice = CheckDir(dir.path());

  ASSERT_TRUE(notice.ok()) << notice.status();
  EXPECT_THAT(
      *notice,
      HasSubstr("2 tensors are not used: mtp.a.weight, mtp.b.weight ("));
}

}  // namespace
}  // namespace portolan
