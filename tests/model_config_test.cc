#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <string>

#include "runtime/kernels/math.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/strict_json.h"

namespace portolan {
namespace {

using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

json Qwen3Moe() {
  return {{"model_type", "qwen3_moe"},
          {"architectures", {"Qwen3MoeForCausalLM"}},
          {"attention_bias", false},
          {"bos_token_id", 7},
          {"eos_token_id", 9},
          {"head_dim", 16},
          {"hidden_act", "silu"},
          {"hidden_size", 64},
          {"intermediate_size", 80},
          {"max_position_embeddings", 512},
          {"mlp_only_layers", json::array()},
          {"moe_intermediate_size", 48},
          {"norm_topk_prob", true},
          {"num_attention_heads", 6},
          {"num_experts", 8},
          {"num_experts_per_tok", 2},
          {"num_hidden_layers", 4},
          {"num_key_value_heads", 2},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 1e6},
          {"tie_word_embeddings", true},
          {"vocab_size", 100}};
}

json Mixtral() {
  return {{"model_type", "mixtral"},   {"hidden_size", 64},
          {"intermediate_size", 112},  {"max_position_embeddings", 256},
          {"num_attention_heads", 4},  {"num_experts_per_tok", 2},
          {"num_hidden_layers", 3},    {"num_key_value_heads", 2},
          {"num_local_experts", 8},    {"rms_norm_eps", 1e-5},
          {"sliding_window", nullptr}, {"vocab_size", 100}};
}

// `base` with one field changed.
json With(json base, const std::string& field, json value) {
  base[field] = std::move(value);
  return base;
}

json Without(json base, const std::string& field) {
  base.erase(field);
  return base;
}

absl::StatusOr<ModelConfig> Parse(const json& config) {
  return ParseModelConfig("config.json", config.dump());
}

std::string FaultOf(const json& config) {
  return std::string(Parse(config).status().message());
}

TEST(ModelConfigTest, ReadsEveryFieldOfQwen3Moe) {
  const auto config = Parse(Qwen3Moe());

  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->family, "qwen3_moe");
  EXPECT_EQ(config->num_layers, 4);
  EXPECT_EQ(config->hidden, 64);
  EXPECT_EQ(config->num_heads, 6);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_FLOAT_EQ(config->rms_eps, 1e-6f);
  EXPECT_EQ(config->rope.theta, 1e6);
  EXPECT_EQ(config->rope.rotary_dim, 16);
  EXPECT_EQ(config->max_position, 512);
  EXPECT_EQ(config->sliding_window, 0);
  EXPECT_TRUE(config->has_qk_norm);
  EXPECT_FALSE(config->has_qkv_bias);
  EXPECT_EQ(config->vocab_size, 100);
  EXPECT_TRUE(config->tie_embeddings);
  EXPECT_EQ(config->num_experts, 8);
  EXPECT_EQ(config->top_k, 2);
  EXPECT_EQ(config->expert_intermediate, 48);
  EXPECT_EQ(config->gate_score, GateScore::kSoftmax);
  EXPECT_TRUE(config->norm_topk_prob);
  EXPECT_EQ(config->num_moe_layers(), 4);
  EXPECT_EQ(config->bos_id, 7);
  EXPECT_THAT(config->eos_ids, ElementsAre(9));
}

TEST(ModelConfigTest, ReadsMixtralWithItsOwnDefaults) {
  const auto config = Parse(Mixtral());

  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->rope.theta, 1e6);
  EXPECT_EQ(config->expert_intermediate, 112);
  EXPECT_TRUE(config->norm_topk_prob);
  EXPECT_FALSE(config->has_qk_norm);
  EXPECT_FALSE(config->tie_embeddings);
  EXPECT_EQ(config->bos_id, std::nullopt);
  EXPECT_THAT(config->eos_ids, IsEmpty());
}

TEST(ModelConfigTest, ReadsTheBundledModel) {
  const auto config = LoadModelConfig(PORTOLAN_SOURCE_DIR "/models/tiny-moe");

  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_experts, 32);
  EXPECT_EQ(config->top_k, 4);
  EXPECT_THAT(config->eos_ids, ElementsAre(4093));
  EXPECT_EQ(config->generation.do_sample, true);
  EXPECT_EQ(config->generation.temperature, 0.7);
  EXPECT_EQ(config->generation.top_k, 40);
}

TEST(ModelConfigTest, ListedAndSparseStepLayersAreDense) {
  json file = Qwen3Moe();
  file["decoder_sparse_step"] = 2;
  file["mlp_only_layers"] = {3};

  const auto config = Parse(file);

  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->moe_layers, ElementsAre(false, true, false, false));
  EXPECT_EQ(config->dense_intermediate, 80);
}

TEST(ModelConfigTest, AcceptsWhatTransformers5Writes) {
  json file = Without(Without(Qwen3Moe(), "num_experts"), "rope_theta");
  file["num_local_experts"] = 8;
  file["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 5e5}};

  const auto config = Parse(file);

  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_experts, 8);
  EXPECT_EQ(config->rope.theta, 5e5);
}

TEST(ModelConfigTest, GenerationConfigReplacesIdsAndGivesDefaults) {
  auto config = Parse(Qwen3Moe());
  ASSERT_TRUE(config.ok());

  const absl::Status applied = ApplyGenerationConfig(
      "g.json", R"({"eos_token_id": [1, 2], "temperature": 0.5, "top_p": 0.9})",
      *config);

  EXPECT_TRUE(applied.ok()) << applied;
  EXPECT_THAT(config->eos_ids, ElementsAre(1, 2));
  EXPECT_EQ(config->bos_id, 7);
  EXPECT_EQ(config->generation.temperature, 0.5);
  EXPECT_EQ(config->generation.top_p, 0.9);
  EXPECT_EQ(config->generation.top_k, std::nullopt);
}

TEST(ModelConfigTest, AGenerationConfigOutOfRangeIsRefusedByField) {
  auto config = Parse(Qwen3Moe());
  ASSERT_TRUE(config.ok());

  const absl::Status applied =
      ApplyGenerationConfig("g.json", R"({"top_p": 1.5})", *config);

  EXPECT_THAT(std::string(applied.message()),
              AllOf(HasSubstr("g.json"), HasSubstr("top_p")));
}

TEST(ModelConfigTest, AnUnknownModelTypeNamesTheSupportedOnes) {
  const auto config = Parse(With(Qwen3Moe(), "model_type", "gpt_oss"));

  EXPECT_TRUE(absl::IsUnimplemented(config.status()));
  EXPECT_THAT(std::string(config.status().message()),
              AllOf(HasSubstr("config.json"), HasSubstr("model_type"),
                    HasSubstr("gpt_oss"), HasSubstr("qwen3_moe, mixtral")));
}

struct Refusal {
  std::string field;
  json value;
  std::string says;
};

TEST(ModelConfigTest, RefusesByFieldWhatItCannotRun) {
  const Refusal refusals[] = {
      {"architectures", {"Qwen3MoeForTokenClassification"}, "CausalLM"},
      {"hidden_act", "gelu", "silu"},
      {"quantization_config", json::object(), "quantized"},
      {"quantization_config",
       {{"quant_method", "awq"}},
       "supported: quant_method fp8"},
      {"quantization_config",
       {{"quant_method", "fp8"}},
       "weight_block_size: wanted two sizes"},
      {"quantization_config",
       {{"quant_method", "fp8"}, {"weight_block_size", {128, 0}}},
       "from 1 to 65536"},
      {"partial_rotary_factor", 0.5, "only 1"},
      {"rope_scaling",
       {{"rope_type", "yarn"}, {"factor", 4}},
       "linear, llama3"},
      {"rope_scaling", {{"type", "linear"}}, "factor: missing"},
      {"rope_parameters", {{"full_attention", json::object()}}, "by layer"},
      {"num_key_value_heads", 4, "does not divide"},
      {"num_experts_per_tok", 9, "9 of 8"},
      {"head_dim", 15, "even"},
      {"eos_token_id", 100, "from 0 to 99"},
      {"eos_token_id", {1, -1}, "-1"},
      {"mlp_only_layers", {4}, "from 0 to 3"},
      {"num_local_experts", 16, "differs"},
  };

  for (const Refusal& refusal : refusals) {
    EXPECT_THAT(
        FaultOf(With(Qwen3Moe(), refusal.field, refusal.value)),
        AllOf(HasSubstr("config.json: field " + refusal.field.substr(0, 4)),
              HasSubstr(refusal.says)))
        << refusal.field;
  }
}

TEST(ModelConfigTest, EverySizeIsBoundedAndAnInteger) {
  for (const char* field :
       {"num_hidden_layers", "hidden_size", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size",
        "max_position_embeddings", "num_experts", "num_experts_per_tok",
        "moe_intermediate_size"}) {
    for (const json& value :
         {json(0), json(-1), json(1.5), json("8"), json(true),
          json(uint64_t{1} << 63), json(int64_t{1} << 62), json::array()}) {
      EXPECT_THAT(FaultOf(With(Qwen3Moe(), field, value)),
                  HasSubstr(std::string("field ") + field))
          << value;
    }
  }
}

TEST(ModelConfigTest, AMissingSizeIsNamed) {
  for (const char* field : {"num_hidden_layers", "hidden_size", "vocab_size",
                            "num_experts", "moe_intermediate_size"}) {
    EXPECT_THAT(FaultOf(Without(Qwen3Moe(), field)),
                HasSubstr(std::string("field ") + field + ": missing"));
  }
}

TEST(ModelConfigTest, AWindowCountsOnlyWhereAllReleasesAgree) {
  json file = With(Qwen3Moe(), "sliding_window", 128);
  EXPECT_EQ(Parse(file)->sliding_window, 0);  // use_sliding_window is false

  file["use_sliding_window"] = true;
  file["max_window_layers"] = 0;
  EXPECT_EQ(Parse(file)->sliding_window, 128);

  file["max_window_layers"] = 2;
  EXPECT_THAT(FaultOf(file), HasSubstr("max_window_layers"));

  EXPECT_EQ(Parse(With(Mixtral(), "sliding_window", 100))->sliding_window, 100);
  EXPECT_EQ(Parse(With(Mixtral(), "sliding_window", 256))->sliding_window, 0);
}

TEST(RopeFrequenciesTest, FallGeometrically) {
  const auto f = RopeFrequencies({.theta = 100, .rotary_dim = 4});

  ASSERT_EQ(f.size(), 2u);
  EXPECT_DOUBLE_EQ(f[0], 1);
  EXPECT_DOUBLE_EQ(f[1], 0.1);
}

// libm's last bit depends on the processor.
TEST(RopeFrequenciesTest, ComeFromFunctionsOfOurOwn) {
  for (const double theta : {1e4, 5e5, 1e6}) {
    const auto f = RopeFrequencies({.theta = theta, .rotary_dim = 128});

    ASSERT_EQ(f.size(), 64u);
    for (size_t i = 0; i < 64; ++i) {
      const double exponent = -2.0 * static_cast<double>(i) / 128;
      EXPECT_EQ(f[i], ExpD(exponent * LogD(theta)));
      EXPECT_EQ(static_cast<float>(f[i]),
                static_cast<float>(std::pow(theta, exponent)));
    }
  }
}

TEST(RopeFrequenciesTest, LinearScalingSlowsAllAlike) {
  const auto f = RopeFrequencies({.theta = 100,
                                  .rotary_dim = 4,
                                  .scaling = RopeScaling::kLinear,
                                  .factor = 4});

  EXPECT_DOUBLE_EQ(f[0], 0.25);
  EXPECT_DOUBLE_EQ(f[1], 0.025);
}

// The figures are those of transformers' llama3 rope with the same parameters.
TEST(RopeFrequenciesTest, Llama3ScalingSlowsLongWavesOnly) {
  const auto f = RopeFrequencies({.theta = 500000,
                                  .rotary_dim = 8,
                                  .scaling = RopeScaling::kLlama3,
                                  .factor = 8,
                                  .low_freq_factor = 1,
                                  .high_freq_factor = 4,
                                  .original_max_position = 8192});

  ASSERT_EQ(f.size(), 4u);
  EXPECT_DOUBLE_EQ(f[0], 1);
  EXPECT_NEAR(f[1], 0.0376060309309, 1e-12);
  EXPECT_NEAR(f[2], 0.000524846160993, 1e-12);
  EXPECT_NEAR(f[3], 6.64786987118e-06, 1e-15);
}

TEST(StrictJsonTest, RefusesAKeyThatOccursTwice) {
  const auto value = ParseJsonObject("x.json", R"({"a": {"b": 1, "b": 2}})");

  EXPECT_THAT(std::string(value.status().message()),
              AllOf(HasSubstr("x.json"), HasSubstr("\"b\" occurs twice")));
}

TEST(StrictJsonTest, EqualKeysOfTwoObjectsAreFine) {
  EXPECT_TRUE(ParseJsonObject("x", R"({"a": {"b": 1}, "c": {"b": 2}})").ok());
}

TEST(StrictJsonTest, RefusesDeepNestingWithoutRecursion) {
  const std::string deep(100000, '[');

  EXPECT_THAT(std::string(ParseJsonObject("x.json", deep).status().message()),
              HasSubstr("nested"));
}

TEST(StrictJsonTest, SaysWhereTextIsNotJson) {
  EXPECT_THAT(
      std::string(ParseJsonObject("x.json", "{\"a\": }").status().message()),
      AllOf(HasSubstr("x.json"), HasSubstr("byte 7")));
  EXPECT_FALSE(ParseJsonObject("x.json", "").ok());
  EXPECT_FALSE(ParseJsonObject("x.json", "[1]").ok());
  EXPECT_FALSE(ParseJsonObject("x.json", "{\"a\": 1e999}").ok());
  EXPECT_FALSE(ParseJsonObject("x.json", "{\"\xff\": 1}").ok());
}

}  // namespace
}  // namespace portolan
