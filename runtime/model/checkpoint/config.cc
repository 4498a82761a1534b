#include "runtime/model/checkpoint/config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status_macros.h"
#include "runtime/kernels/math.h"
#include "runtime/model/checkpoint/config_fields.h"
#include "runtime/model/checkpoint/family.h"
#include "runtime/model/checkpoint/strict_json.h"

namespace portolan {
namespace {

constexpr size_t kMaxConfigBytes = 16 << 20;

absl::StatusOr<const ModelFamily*> FamilyOf(const std::string& file,
                                            const ConfigFields& fields,
                                            const std::string& model_type) {
  PORTOLAN_RETURN_IF_ERROR(fields.status());
  const ModelFamily* family = FindFamily(model_type);
  if (family != nullptr) return family;
  const auto name = [](std::string* out, const ModelFamily* known) {
    absl::StrAppend(out, known->model_type);
  };
  return absl::UnimplementedError(
      absl::StrCat(file, ": field model_type: \"", model_type,
                   "\" is not supported; supported: ",
                   absl::StrJoin(AllFamilies(), ", ", name)));
}

void CheckArchitecture(const ModelFamily& family, ConfigFields& fields) {
  const std::vector<std::string> names = fields.Strings("architectures");
  if (names.empty() || std::ranges::count(names, family.architecture) > 0) {
    return;
  }
  fields.Refuse(
      "architectures",
      absl::StrCat("\"", absl::StrJoin(names, ", "),
                   "\" is not supported; supported: ", family.architecture));
}

void ReadSpecialIds(ConfigFields& fields, ModelConfig& config) {
  const int64_t last = config.vocab_size - 1;
  if (fields.Has("bos_token_id")) {
    config.bos_id = static_cast<int32_t>(fields.Int("bos_token_id", 0, last));
  }
  if (!fields.Has("eos_token_id")) return;
  config.eos_ids.clear();
  for (int64_t id : fields.Ints("eos_token_id", 0, last)) {
    config.eos_ids.push_back(static_cast<int32_t>(id));
  }
}

// `min` and `max` inclusive.
std::optional<double> OptionalNumber(ConfigFields& fields,
                                     const std::string& path, double min,
                                     double max) {
  if (!fields.Has(path)) return std::nullopt;
  return fields.NumberOr(path, min, min, max);
}

double Llama3Frequency(const RopeConfig& rope, double frequency) {
  const double turns = static_cast<double>(rope.original_max_position) *
                       frequency / (2 * std::numbers::pi);
  if (turns > rope.high_freq_factor) return frequency;
  if (turns < rope.low_freq_factor) return frequency / rope.factor;
  const double smooth = (turns - rope.low_freq_factor) /
                        (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - smooth) * frequency / rope.factor + smooth * frequency;
}

}  // namespace

std::vector<double> RopeFrequencies(const RopeConfig& rope) {
  std::vector<double> frequencies(static_cast<size_t>(rope.rotary_dim / 2));
  const double log_theta = LogD(rope.theta);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double base =
        ExpD(-2.0 * static_cast<double>(i) / rope.rotary_dim * log_theta);
    frequencies[i] = rope.scaling == RopeScaling::kLlama3
                         ? Llama3Frequency(rope, base)
                         : base / rope.factor;
  }
  return frequencies;
}

int ModelConfig::num_moe_layers() const {
  return static_cast<int>(std::ranges::count(moe_layers, true));
}

std::vector<int32_t> ModelConfig::MoeLayers() const {
  std::vector<int32_t> layers;
  for (int32_t layer = 0; layer < num_layers; ++layer) {
    if (IsMoeLayer(layer)) layers.push_back(layer);
  }
  return layers;
}

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& file,
                                             std::string_view text) {
  PORTOLAN_ASSIGN_OR_RETURN(const nlohmann::json object,
                            ParseJsonObject(file, text));
  ConfigFields fields{std::string(file), object};
  if (!fields.Has("model_type")) fields.Refuse("model_type", "missing");
  const std::string model_type = fields.StringOr("model_type", "");
  PORTOLAN_ASSIGN_OR_RETURN(const ModelFamily* family,
                            FamilyOf(file, fields, model_type));
  ModelConfig config;
  config.family = model_type;
  config.file = std::string(file);
  CheckArchitecture(*family, fields);
  family->read_config(fields, config);
  ReadSpecialIds(fields, config);
  PORTOLAN_RETURN_IF_ERROR(fields.status());
  return config;
}

absl::Status ApplyGenerationConfig(const std::string& file,
                                   std::string_view text, ModelConfig& config) {
  PORTOLAN_ASSIGN_OR_RETURN(const nlohmann::json object,
                            ParseJsonObject(file, text));
  ConfigFields fields{std::string(file), object};
  ReadSpecialIds(fields, config);
  GenerationDefaults& defaults = config.generation;
  if (fields.Has("do_sample")) {
    defaults.do_sample = fields.BoolOr("do_sample", false);
  }
  if (fields.Has("top_k")) {
    defaults.top_k = static_cast<int32_t>(fields.Int("top_k", 0, INT32_MAX));
  }
  defaults.temperature =
      OptionalNumber(fields, "temperature", 0, kMaxTemperature);
  defaults.top_p = OptionalNumber(fields, "top_p", 0, 1);
  if (defaults.top_p == 0) fields.Refuse("top_p", "0 keeps no token");
  defaults.min_p = OptionalNumber(fields, "min_p", 0, 1);
  defaults.repetition_penalty =
      OptionalNumber(fields, "repetition_penalty", 1e-6, kMaxPenalty);
  return fields.status();
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir) {
  const std::string file = absl::StrCat(dir, "/config.json");
  PORTOLAN_ASSIGN_OR_RETURN(const std::string text,
                            ReadTextFile(file, kMaxConfigBytes));
  PORTOLAN_ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(file, text));
  const std::string generation = absl::StrCat(dir, "/generation_config.json");
  const absl::StatusOr<std::string> more =
      ReadTextFile(generation, kMaxConfigBytes);
  if (absl::IsNotFound(more.status())) return config;
  PORTOLAN_RETURN_IF_ERROR(more.status());
  PORTOLAN_RETURN_IF_ERROR(ApplyGenerationConfig(generation, *more, config));
  return config;
}

}  // namespace portolan
