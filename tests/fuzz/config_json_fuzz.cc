// config.json and generation_config.json from anywhere: an error or a config
// whose numbers are safe to compute with, never a crash.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "runtime/base/check.h"
#include "runtime/model/checkpoint/config.h"

namespace portolan {
namespace {

void CheckConfig(const ModelConfig& config) {
  PORTOLAN_CHECK(config.num_layers > 0 && config.hidden > 0);
  PORTOLAN_CHECK(config.num_heads % config.num_kv_heads == 0);
  PORTOLAN_CHECK(config.top_k > 0 && config.top_k <= config.num_experts);
  PORTOLAN_CHECK(config.moe_layers.size() ==
                 static_cast<size_t>(config.num_layers));
  PORTOLAN_CHECK(config.num_moe_layers() == config.num_layers ||
                 config.dense_intermediate > 0);
  for (int32_t id : config.eos_ids) {
    PORTOLAN_CHECK(id >= 0 && id < config.vocab_size);
  }
  RopeFrequencies(config.rope);
}

}  // namespace
}  // namespace portolan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace portolan;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  absl::StatusOr<ModelConfig> config = ParseModelConfig("config.json", text);
  if (config.ok()) {
    CheckConfig(*config);
    if (ApplyGenerationConfig("config.json", text, *config).ok()) {
      CheckConfig(*config);
    }
  }
  return 0;
}
