#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/model/checkpoint/family.h"

namespace portolan {
namespace {

constexpr char kBiasField[] = "attention_bias";

// A layer is dense if it is listed or off the sparse step.
void ReadLayers(ConfigFields& fields, ModelConfig& config) {
  const int64_t last = config.num_layers - 1;
  const int64_t step = fields.IntOr("decoder_sparse_step", 1, 1, INT32_MAX);
  config.moe_layers.resize(static_cast<size_t>(config.num_layers));
  for (int64_t i = 0; i <= last; ++i) {
    config.moe_layers[static_cast<size_t>(i)] = (i + 1) % step == 0;
  }
  for (int64_t layer : fields.Ints("mlp_only_layers", 0, last)) {
    config.moe_layers[static_cast<size_t>(layer)] = false;
  }
  if (config.num_moe_layers() < config.num_layers) {
    config.dense_intermediate = fields.Int("intermediate_size", 1, kMaxWidth);
  }
}

// Older releases of transformers apply the window from layer
// max_window_layers on, newer ones to all layers; taken are only the settings
// that both read alike.
void ReadWindow(ConfigFields& fields, ModelConfig& config) {
  if (!fields.BoolOr("use_sliding_window", false)) return;
  const int64_t window = fields.IntOr("sliding_window", 0, 0, INT64_MAX);
  if (window == 0 || window >= config.max_position) return;
  if (fields.IntOr("max_window_layers", 28, 0, INT32_MAX) != 0) {
    fields.Refuse("use_sliding_window",
                  "true is supported only with max_window_layers 0");
  }
  config.sliding_window = window;
}

void ReadConfig(ConfigFields& fields, ModelConfig& config) {
  ReadCommonFields(fields, /*default_theta=*/10000, config);
  ReadNumExperts(fields, config);
  config.expert_intermediate =
      fields.Int("moe_intermediate_size", 1, kMaxWidth);
  config.norm_topk_prob = fields.BoolOr("norm_topk_prob", false);
  config.has_qk_norm = true;
  config.has_qkv_bias = fields.BoolOr(kBiasField, false);
  config.has_output_bias = config.has_qkv_bias;
  ReadLayers(fields, config);
  ReadWindow(fields, config);
}

}  // namespace

const ModelFamily& Qwen3MoeFamily() {
  static const ModelFamily kFamily = {.model_type = "qwen3_moe",
                                      .architecture = "Qwen3MoeForCausalLM",
                                      .read_config = ReadConfig,
                                      .moe_blocks = {"mlp"},
                                      .gate = "gate_proj",
                                      .up = "up_proj",
                                      .down = "down_proj",
                                      .bias_field = kBiasField};
  return kFamily;
}

}  // namespace portolan
