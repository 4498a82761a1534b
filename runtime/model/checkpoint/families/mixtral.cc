#include <cstdint>

#include "runtime/model/checkpoint/family.h"

namespace portolan {
namespace {

void ReadConfig(ConfigFields& fields, ModelConfig& config) {
  ReadCommonFields(fields, /*default_theta=*/1e6, config);
  ReadNumExperts(fields, config);
  config.expert_intermediate = fields.Int("intermediate_size", 1, kMaxWidth);
  config.norm_topk_prob = true;
  config.moe_layers.assign(static_cast<size_t>(config.num_layers), true);
  config.sliding_window = fields.IntOr("sliding_window", 0, 0, INT64_MAX);
  if (config.sliding_window >= config.max_position) config.sliding_window = 0;
}

}  // namespace

const ModelFamily& MixtralFamily() {
  // transformers >= 5 renames block_sparse_moe to mlp in memory.
  static const ModelFamily kFamily = {.model_type = "mixtral",
                                      .architecture = "MixtralForCausalLM",
                                      .read_config = ReadConfig,
                                      .moe_blocks = {"block_sparse_moe", "mlp"},
                                      .gate = "w1",
                                      .up = "w3",
                                      .down = "w2"};
  return kFamily;
}

}  // namespace portolan
