#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/config_fields.h"

namespace portolan {

// The widest matrix that a config may ask for. No public model comes near;
// products of two stay inside int64_t, and a matrix of two times four bytes
// inside a file offset.
inline constexpr int64_t kMaxWidth = int64_t{1} << 24;

// What sets one model family apart: its reading of config.json and its names
// of tensors. A new family is a file in families/ and a line in family.cc.
//
// Common to all are Llama's names: model.embed_tokens, model.norm, lm_head and,
// under model.layers.{layer}, input_layernorm, self_attn.{q,k,v,o}_proj,
// self_attn.{q,k}_norm, post_attention_layernorm, mlp.{gate,up,down}_proj.
struct ModelFamily {
  std::string model_type;
  std::string architecture;  // the causal language model's class
  // Fills `config` but for family, file and eos/bos; faults go to `fields`.
  void (*read_config)(ConfigFields& fields, ModelConfig& config);

  // Where the gate ("{block}.gate.weight") and the experts may stand under a
  // layer; the first that exists counts.
  std::vector<std::string> moe_blocks;
  // "{block}.experts.{expert}.{gate}.weight". A checkpoint may instead have
  // "{block}.experts.gate_up_proj" [experts, 2 * intermediate, hidden], gate
  // rows first, and "{block}.experts.down_proj" [experts, hidden,
  // intermediate], which is how transformers >= 5 holds both families.
  std::string gate;
  std::string up;
  std::string down;

  // What in config.json gives the projections of attention biases; empty: they
  // never have any.
  std::string bias_field = {};
};

const ModelFamily& Qwen3MoeFamily();  // families/qwen3_moe.cc
const ModelFamily& MixtralFamily();   // families/mixtral.cc

std::span<const ModelFamily* const> AllFamilies();

// Null if there is none.
const ModelFamily* FindFamily(std::string model_type);

// Fields that every family spells alike: layers, hidden, heads, vocabulary,
// norm, rope, limits, top-k. `default_theta` is the family's rope_theta where
// the file has none.
void ReadCommonFields(ConfigFields& fields, double default_theta,
                      ModelConfig& config);

// num_experts or num_local_experts: transformers writes either.
void ReadNumExperts(ConfigFields& fields, ModelConfig& config);

}  // namespace portolan
