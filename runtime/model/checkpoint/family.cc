#include "runtime/model/checkpoint/family.h"

#include <array>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace portolan {
namespace {

// As kMaxWidth.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxExperts = 65536;
constexpr int64_t kMaxHeads = 65536;
constexpr int64_t kMaxHeadDim = 65536;
constexpr int64_t kMaxPosition = int64_t{1} << 30;

// Which tensors are fp8 their dtypes tell; modules_to_not_convert adds nothing.
void ReadQuantization(ConfigFields& fields, ModelConfig& config) {
  const std::string in = "quantization_config.";
  const std::string method = fields.StringOr(in + "quant_method", "");
  const std::string format = fields.StringOr(in + "fmt", "e4m3");
  if (method != "fp8" || format != "e4m3") {
    fields.Refuse("quantization_config",
                  absl::StrCat("quantized by \"", method, "\", fmt \"", format,
                               "\"; supported: quant_method fp8, fmt e4m3"));
    return;
  }
  constexpr int64_t kMaxBlock = 65536;
  const std::vector<int64_t> block =
      fields.Ints(in + "weight_block_size", 1, kMaxBlock);
  if (block.size() != 2) {
    fields.Refuse(in + "weight_block_size",
                  "wanted two sizes, as in [128, 128]: scales by tensor or by "
                  "channel are not supported");
    return;
  }
  config.scale_block_rows = block[0];
  config.scale_block_cols = block[1];
}

void ReadHeads(ConfigFields& fields, ModelConfig& config) {
  const int64_t heads = fields.Int("num_attention_heads", 1, kMaxHeads);
  const int64_t kv_heads =
      fields.IntOr("num_key_value_heads", heads, 1, kMaxHeads);
  if (heads % kv_heads != 0) {
    fields.Refuse("num_key_value_heads",
                  absl::StrCat(kv_heads, " does not divide num_attention_heads",
                               " = ", heads));
  }
  const bool is_explicit = fields.Has("head_dim");
  if (!is_explicit && config.hidden % heads != 0) {
    fields.Refuse("num_attention_heads",
                  absl::StrCat(heads, " does not divide hidden_size = ",
                               config.hidden, " and there is no head_dim"));
  }
  const int64_t head_dim = is_explicit ? fields.Int("head_dim", 2, kMaxHeadDim)
                                       : config.hidden / heads;
  if (head_dim % 2 != 0 || head_dim == 0) {
    fields.Refuse("head_dim",
                  absl::StrCat(head_dim, ", wanted an even number"));
  }
  if (heads * head_dim > kMaxWidth) {
    fields.Refuse("head_dim", absl::StrCat(heads, " heads of ", head_dim,
                                           ", at most ", kMaxWidth, " wide"));
  }
  config.num_heads = static_cast<int32_t>(heads);
  config.num_kv_heads = static_cast<int32_t>(kv_heads);
  config.head_dim = static_cast<int32_t>(head_dim);
}

// transformers < 5 writes rope_theta beside rope_scaling {rope_type or type};
// from 5 on everything stands in rope_parameters.
void ReadRope(ConfigFields& fields, double default_theta, ModelConfig& config) {
  const std::string in =
      fields.Has("rope_parameters") ? "rope_parameters." : "rope_scaling.";
  RopeConfig& rope = config.rope;
  rope.rotary_dim = config.head_dim;
  const double theta = fields.NumberOr("rope_theta", default_theta, 1, 1e15);
  rope.theta = fields.NumberOr("rope_parameters.rope_theta", theta, 1, 1e15);
  for (const std::string& path :
       {std::string("partial_rotary_factor"), in + "partial_rotary_factor"}) {
    if (fields.NumberOr(path, 1, 0, 1) != 1) {
      fields.Refuse(path, "only 1 is supported for this model_type");
    }
  }
  const std::string type = fields.StringOr(
      in + "rope_type", fields.StringOr(in + "type", "default"));
  if (fields.Has(in + "full_attention")) {
    fields.Refuse(in + "full_attention", "rope by layer is not supported");
  }
  if (type == "default") return;
  if (type != "linear" && type != "llama3") {
    fields.Refuse(in + "rope_type",
                  absl::StrCat("\"", type,
                               "\" is not supported; supported: default, "
                               "linear, llama3"));
    return;
  }
  if (!fields.Has(in + "factor")) fields.Refuse(in + "factor", "missing");
  rope.factor = fields.NumberOr(in + "factor", 1, 1, 1e6);
  rope.scaling = RopeScaling::kLinear;
  if (type == "linear") return;
  rope.scaling = RopeScaling::kLlama3;
  rope.low_freq_factor = fields.NumberOr(in + "low_freq_factor", 1, 1e-6, 1e6);
  rope.high_freq_factor =
      fields.NumberOr(in + "high_freq_factor", 4, 1e-6, 1e6);
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    fields.Refuse(in + "high_freq_factor", "not above low_freq_factor");
  }
  rope.original_max_position =
      fields.IntOr(in + "original_max_position_embeddings", config.max_position,
                   1, kMaxPosition);
}

}  // namespace

std::span<const ModelFamily* const> AllFamilies() {
  static const std::array<const ModelFamily*, 2> kAll = {&Qwen3MoeFamily(),
                                                         &MixtralFamily()};
  return kAll;
}

const ModelFamily* FindFamily(std::string model_type) {
  for (const ModelFamily* family : AllFamilies()) {
    if (family->model_type == model_type) return family;
  }
  return nullptr;
}

void ReadCommonFields(ConfigFields& fields, double default_theta,
                      ModelConfig& config) {
  config.num_layers =
      static_cast<int32_t>(fields.Int("num_hidden_layers", 1, kMaxLayers));
  config.hidden = fields.Int("hidden_size", 1, kMaxWidth);
  config.vocab_size = fields.Int("vocab_size", 1, kMaxWidth);
  config.max_position = fields.Int("max_position_embeddings", 1, kMaxPosition);
  config.rms_eps =
      static_cast<float>(fields.NumberOr("rms_norm_eps", 1e-6, 1e-12, 1));
  config.tie_embeddings = fields.BoolOr("tie_word_embeddings", false);
  config.top_k =
      static_cast<int32_t>(fields.Int("num_experts_per_tok", 1, kMaxExperts));
  const std::string activation = fields.StringOr("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    fields.Refuse("hidden_act", absl::StrCat("\"", activation,
                                             "\" is not supported; supported: "
                                             "silu"));
  }
  if (fields.Has("quantization_config")) ReadQuantization(fields, config);
  ReadHeads(fields, config);
  ReadRope(fields, default_theta, config);
}

void ReadNumExperts(ConfigFields& fields, ModelConfig& config) {
  const std::string key =
      fields.Has("num_local_experts") ? "num_local_experts" : "num_experts";
  const int64_t experts = fields.Int(key, 1, kMaxExperts);
  if (fields.IntOr("num_experts", experts, 1, kMaxExperts) != experts) {
    fields.Refuse("num_experts", "differs from num_local_experts");
  }
  config.num_experts = static_cast<int32_t>(experts);
  if (config.top_k > config.num_experts) {
    fields.Refuse("num_experts_per_tok",
                  absl::StrCat(config.top_k, " of ", experts, " experts"));
  }
}

}  // namespace portolan
