#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace portolan {

enum class GateScore : uint8_t { kSoftmax, kSigmoid };

enum class RopeScaling : uint8_t { kNone, kLinear, kLlama3 };

// Rotary embedding in the half-split form: dims i and i + rotary_dim / 2 turn
// together.
struct RopeConfig {
  double theta = 10000;
  int32_t rotary_dim = 0;  // even; the first dims of a head
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1;                  // kLinear, kLlama3
  double low_freq_factor = 1;         // kLlama3
  double high_freq_factor = 4;        // kLlama3
  int64_t original_max_position = 0;  // kLlama3
};

// Radians per position of each pair, [rotary_dim / 2]: theta^(-2i /
// rotary_dim), scaling applied; the same bits on every processor.
std::vector<double> RopeFrequencies(const RopeConfig& rope);

// The limits of sampling parameters, wherever they come from.
inline constexpr double kMaxTemperature = 100;
inline constexpr double kMaxPenalty = 100;

// What generation_config.json says of sampling. An absent value is left to the
// caller; do_sample = false means greedy.
struct GenerationDefaults {
  std::optional<bool> do_sample;
  std::optional<double> temperature;         // 0 .. kMaxTemperature
  std::optional<double> top_p;               // above 0, at most 1
  std::optional<int32_t> top_k;              // 0: off
  std::optional<double> min_p;               // 0 .. 1
  std::optional<double> repetition_penalty;  // above 0, at most kMaxPenalty
};

// The shape of a decoder-only MoE model and the rules of its forward pass:
// RMSNorm, grouped-query attention, rope, SwiGLU. Every number is within
// limits that keep products of two sizes inside int64_t.
struct ModelConfig {
  std::string family;  // model_type: "qwen3_moe", "mixtral"
  std::string file;    // where it was read, for messages

  int32_t num_layers = 0;
  int64_t hidden = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;  // divides num_heads
  int32_t head_dim = 0;      // even
  float rms_eps = 0;
  RopeConfig rope;
  int64_t max_position = 0;
  int64_t sliding_window = 0;  // keys a query sees, itself included; 0: all
  bool has_qk_norm = false;    // RMSNorm of each head of q and k, before rope
  bool has_qkv_bias = false;
  bool has_output_bias = false;  // of the attention's output projection

  int64_t vocab_size = 0;
  bool tie_embeddings = false;  // lm_head is the embedding

  int32_t num_experts = 0;
  int32_t top_k = 0;
  int64_t expert_intermediate = 0;
  GateScore gate_score = GateScore::kSoftmax;
  bool norm_topk_prob = false;     // chosen weights are divided by their sum
  std::vector<bool> moe_layers;    // [num_layers]
  int64_t dense_intermediate = 0;  // of the other layers; 0 if there are none

  // Of a checkpoint with fp8 weights (quantization_config.weight_block_size):
  // the rows and columns that share a scale; else 0.
  int64_t scale_block_rows = 0;
  int64_t scale_block_cols = 0;

  std::optional<int32_t> bos_id;
  std::vector<int32_t> eos_ids;  // each of them stops
  GenerationDefaults generation;

  bool IsMoeLayer(int layer) const {
    return moe_layers[static_cast<size_t>(layer)];
  }
  int num_moe_layers() const;
  // The layers with experts, rising. Experts, exchange, hints, traces and
  // history count layers by the index into it.
  std::vector<int32_t> MoeLayers() const;
};

// Reads the text of a config.json; `file` is for messages.
// Errors: kInvalidArgument naming file, field, what it holds and what is
// supported; kUnimplemented, likewise, for a model_type without a family.
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& file,
                                             std::string_view text);

// Reads a generation_config.json into `config`: ids that it states replace
// those of config.json. Errors: kInvalidArgument as above.
absl::Status ApplyGenerationConfig(const std::string& file,
                                   std::string_view text, ModelConfig& config);

// config.json and, where there is one, generation_config.json of a model
// directory. Errors: as above; kNotFound, kUnavailable from the file system.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir);

}  // namespace portolan
