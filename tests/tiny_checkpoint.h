#pragma once

// Small models on disk whose every weight is known, for tests.

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/bf16.h"
#include "runtime/base/fp16.h"
#include "tests/checkpoint_files.h"

namespace portolan {

struct TinyModel {
  bool mixtral = false;
  bool fused = false;    // experts in one tensor per layer
  bool tied = false;     // no lm_head
  bool bias = false;     // attention_bias, Qwen3-MoE only
  int dense_layer = -1;  // Qwen3-MoE only
  std::string dtype = "BF16";

  int num_layers = 2;
  int64_t hidden = 48;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t head_dim = 16;
  int64_t vocab = 50;
  int64_t num_experts = 3;
  int64_t intermediate = 24;
  int64_t dense_intermediate = 40;
  std::vector<std::string> further = {};  // names of vectors nobody asks for

  std::string block(int layer) const {
    return absl::StrCat("model.layers.", layer,
                        mixtral ? ".block_sparse_moe" : ".mlp");
  }
};

// The weight of element `index` of the tensor `name`: exact in f16 and bf16.
inline float TinyWeight(const std::string& name, int64_t index) {
  uint64_t mixed = 1469598103934665603u;
  for (char c : name)
    mixed = (mixed ^ static_cast<uint8_t>(c)) * 1099511628211u;
  mixed = (mixed ^ static_cast<uint64_t>(index)) * 0x9e3779b97f4a7c15u;
  return static_cast<float>(static_cast<int>(mixed >> 57) - 64) / 64.0f;
}

inline std::vector<Bf16> TinyWeights(const std::string& name, int64_t count,
                                     int64_t first = 0) {
  std::vector<Bf16> weights;
  for (int64_t i = first; i < first + count; ++i) {
    weights.push_back(ToBf16(TinyWeight(name, i)));
  }
  return weights;
}

inline TestTensor TinyTensor(const std::string& name,
                             std::vector<int64_t> shape,
                             const std::string& dtype) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  std::vector<float> f32;
  std::vector<Fp16> f16;
  for (int64_t i = 0; i < count; ++i) {
    f32.push_back(TinyWeight(name, i));
    f16.push_back(ToFp16(f32.back()));
  }
  std::string bytes = dtype == "F32" ? BytesOfValues(f32)
                      : dtype == "F16"
                          ? BytesOfValues(f16)
                          : BytesOfValues(TinyWeights(name, count));
  return {name, dtype, std::move(shape), std::move(bytes)};
}

inline std::vector<TestTensor> TinyExperts(const TinyModel& m, int layer) {
  const std::string experts = m.block(layer) + ".experts";
  if (m.fused) {
    return {TinyTensor(experts + ".gate_up_proj",
                       {m.num_experts, 2 * m.intermediate, m.hidden}, m.dtype),
            TinyTensor(experts + ".down_proj",
                       {m.num_experts, m.hidden, m.intermediate}, m.dtype)};
  }
  std::vector<TestTensor> tensors;
  for (int64_t e = 0; e < m.num_experts; ++e) {
    const std::string expert = absl::StrCat(experts, ".", e, ".");
    const auto add = [&](const char* name, int64_t rows, int64_t cols) {
      tensors.push_back(TinyTensor(absl::StrCat(expert, name, ".weight"),
                                   {rows, cols}, m.dtype));
    };
    add(m.mixtral ? "w1" : "gate_proj", m.intermediate, m.hidden);
    add(m.mixtral ? "w3" : "up_proj", m.intermediate, m.hidden);
    add(m.mixtral ? "w2" : "down_proj", m.hidden, m.intermediate);
  }
  return tensors;
}

inline std::vector<TestTensor> TinyLayer(const TinyModel& m, int layer) {
  std::vector<TestTensor> tensors;
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    tensors.push_back(TinyTensor(prefix + name, std::move(shape), m.dtype));
  };
  const int64_t q = m.num_heads * m.head_dim;
  const int64_t kv = m.num_kv_heads * m.head_dim;
  add("input_layernorm.weight", {m.hidden});
  add("post_attention_layernorm.weight", {m.hidden});
  add("self_attn.q_proj.weight", {q, m.hidden});
  add("self_attn.k_proj.weight", {kv, m.hidden});
  add("self_attn.v_proj.weight", {kv, m.hidden});
  add("self_attn.o_proj.weight", {m.hidden, q});
  if (m.bias) {
    add("self_attn.q_proj.bias", {q});
    add("self_attn.k_proj.bias", {kv});
    add("self_attn.v_proj.bias", {kv});
    add("self_attn.o_proj.bias", {m.hidden});
  }
  if (!m.mixtral) {
    add("self_attn.q_norm.weight", {m.head_dim});
    add("self_attn.k_norm.weight", {m.head_dim});
  }
  if (layer == m.dense_layer) {
    add("mlp.gate_proj.weight", {m.dense_intermediate, m.hidden});
    add("mlp.up_proj.weight", {m.dense_intermediate, m.hidden});
    add("mlp.down_proj.weight", {m.hidden, m.dense_intermediate});
    return tensors;
  }
  tensors.push_back(TinyTensor(m.block(layer) + ".gate.weight",
                               {m.num_experts, m.hidden}, m.dtype));
  for (TestTensor& tensor : TinyExperts(m, layer)) {
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

inline std::vector<TestTensor> TinyTensors(const TinyModel& m) {
  std::vector<TestTensor> tensors = {
      TinyTensor("model.embed_tokens.weight", {m.vocab, m.hidden}, m.dtype),
      TinyTensor("model.norm.weight", {m.hidden}, m.dtype)};
  if (!m.tied) {
    tensors.push_back(
        TinyTensor("lm_head.weight", {m.vocab, m.hidden}, m.dtype));
  }
  for (int layer = 0; layer < m.num_layers; ++layer) {
    for (TestTensor& tensor : TinyLayer(m, layer)) {
      tensors.push_back(std::move(tensor));
    }
  }
  for (const std::string& name : m.further) {
    tensors.push_back(TinyTensor(name, {m.hidden}, m.dtype));
  }
  return tensors;
}

inline nlohmann::json TinyConfig(const TinyModel& m) {
  nlohmann::json config = {{"model_type", m.mixtral ? "mixtral" : "qwen3_moe"},
                           {"attention_bias", m.bias},
                           {"head_dim", m.head_dim},
                           {"hidden_act", "silu"},
                           {"hidden_size", m.hidden},
                           {"max_position_embeddings", 64},
                           {"num_attention_heads", m.num_heads},
                           {"num_experts_per_tok", 2},
                           {"num_hidden_layers", m.num_layers},
                           {"num_key_value_heads", m.num_kv_heads},
                           {"num_local_experts", m.num_experts},
                           {"rms_norm_eps", 1e-5},
                           {"tie_word_embeddings", m.tied},
                           {"vocab_size", m.vocab}};
  config["intermediate_size"] =
      m.mixtral ? m.intermediate : m.dense_intermediate;
  config["moe_intermediate_size"] = m.intermediate;
  if (m.dense_layer >= 0) config["mlp_only_layers"] = {m.dense_layer};
  return config;
}

// Writes config.json and weights into `dir`; with num_shards > 1 the tensors
// are dealt out in turn and an index is written.
inline void WriteTinyModel(const TempDir& dir, const TinyModel& model,
                           size_t num_shards = 1) {
  dir.Write("config.json", TinyConfig(model).dump());
  const std::vector<TestTensor> tensors = TinyTensors(model);
  if (num_shards == 1) {
    dir.Write("model.safetensors", SafetensorsFile(tensors));
    return;
  }
  std::vector<std::vector<TestTensor>> shards(num_shards);
  nlohmann::json index;
  for (size_t i = 0; i < tensors.size(); ++i) {
    shards[i % num_shards].push_back(tensors[i]);
    index["weight_map"][tensors[i].name] =
        absl::StrCat("model-", i % num_shards, ".safetensors");
  }
  for (size_t i = 0; i < num_shards; ++i) {
    dir.Write(absl::StrCat("model-", i, ".safetensors"),
              SafetensorsFile(shards[i]));
  }
  dir.Write("model.safetensors.index.json", index.dump());
}

}  // namespace portolan
