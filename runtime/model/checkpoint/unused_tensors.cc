#include "runtime/model/checkpoint/unused_tensors.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/checkpoint/dense_weights.h"
#include "runtime/model/checkpoint/family.h"

namespace portolan {
namespace {

// What it means that a tensor is not used. Those up to kForeign change the
// output; of kHarmless nobody needs to hear.
enum class Unused : uint8_t {
  kAttentionBias,
  kBias,
  kSharedExpert,
  kForeign,  // anything else in a layer that runs
  kBeyondLayers,
  kTiedHead,
  kSpareExpert,
  kScale,
  kOutside,
  kHarmless,
};
constexpr size_t kNumKinds = static_cast<size_t>(Unused::kHarmless);
constexpr size_t kNumErrors = static_cast<size_t>(Unused::kForeign) + 1;

using Names = std::vector<absl::string_view>;
using ByKind = std::array<Names, kNumKinds>;

// Takes "12." off "12.mlp.gate.weight".
bool ConsumeIndex(absl::string_view& name, int64_t& index) {
  const size_t dot = name.find('.');
  if (dot == absl::string_view::npos ||
      !absl::SimpleAtoi(name.substr(0, dot), &index)) {
    return false;
  }
  name.remove_prefix(dot + 1);
  return true;
}

// A matrix of an expert that no output of the gate leads to, or that stands
// there a second time beside the fused ones: `name` without its layer.
bool IsExpertMatrix(const ModelFamily& family, absl::string_view name) {
  for (const std::string& block : family.moe_blocks) {
    absl::string_view rest = name;
    int64_t expert = 0;
    if (!absl::ConsumePrefix(&rest, absl::StrCat(block, ".experts.")) ||
        !ConsumeIndex(rest, expert)) {
      continue;
    }
    absl::ConsumeSuffix(&rest, ".weight");
    return rest == family.gate || rest == family.up || rest == family.down;
  }
  return false;
}

// Of a quantised checkpoint: for a KV cache or activations of 8 bits, which
// are not used, or left over beside weights that are not quantised.
bool IsScale(absl::string_view name) {
  return absl::EndsWith(name, "_scale") || absl::EndsWith(name, "_scale_inv");
}

bool IsBias(absl::string_view name) {
  return absl::EndsWith(name, ".bias") || absl::EndsWith(name, "_bias");
}

// `name` without its layer.
Unused KindInLayer(const ModelFamily& family, absl::string_view name) {
  if (IsScale(name)) return Unused::kScale;
  if (absl::StrContains(name, "shared_expert")) return Unused::kSharedExpert;
  if (IsExpertMatrix(family, name)) return Unused::kSpareExpert;
  for (const char* projection : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
    if (name == absl::StrCat("self_attn.", projection, ".bias")) {
      return Unused::kAttentionBias;
    }
  }
  return IsBias(name) ? Unused::kBias : Unused::kForeign;
}

Unused KindOf(const ModelConfig& config, const ModelFamily& family,
              absl::string_view name) {
  if (absl::EndsWith(name, "rotary_emb.inv_freq")) return Unused::kHarmless;
  absl::string_view rest = name;
  int64_t layer = 0;
  if (absl::ConsumePrefix(&rest, "model.layers.") &&
      ConsumeIndex(rest, layer)) {
    return layer < config.num_layers ? KindInLayer(family, rest)
                                     : Unused::kBeyondLayers;
  }
  if (name == "lm_head.bias" || name == "model.norm.bias") {
    return Unused::kBias;
  }
  if (IsScale(name)) return Unused::kScale;
  return name == "lm_head.weight" ? Unused::kTiedHead : Unused::kOutside;
}

// Where tensors begin: file and offset.
using Places = std::set<std::pair<std::string_view, uint64_t>>;

void AddPlaces(const TensorExtent& extent, Places& places) {
  places.insert({extent.file, extent.offset});
  if (extent.scales) {
    places.insert({extent.scales->file, extent.scales->offset});
  }
}

// Of experts, whose matrices may be parts of a tensor: the first part begins
// where the tensor does.
Places PlacesOf(const ExpertTensors& experts) {
  Places places;
  for (int32_t layer = 0; layer < experts.num_layers(); ++layer) {
    if (!experts.IsMoeLayer(layer)) continue;
    for (int32_t expert = 0; expert < experts.num_experts(); ++expert) {
      const ExpertExtents& e = experts.ExpertExtentsOf({layer, expert});
      for (const TensorExtent* extent : {&e.gate, &e.up, &e.down}) {
        AddPlaces(*extent, places);
      }
    }
  }
  return places;
}

ByKind FindUnused(const ModelConfig& config, const ModelFamily& family,
                  const Checkpoint& checkpoint,
                  const std::vector<const TensorInfo*>& dense,
                  const ExpertTensors& experts) {
  const std::set<const TensorInfo*> used(dense.begin(), dense.end());
  const Places places = PlacesOf(experts);
  ByKind unused;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (used.contains(&tensor) || tensor.bytes == 0) continue;
    const RandomAccessFile& file =
        checkpoint.files()[static_cast<size_t>(tensor.file)];
    if (places.contains({file.path(), tensor.offset})) continue;
    const Unused kind = KindOf(config, family, tensor.name);
    if (kind == Unused::kHarmless) continue;
    unused[static_cast<size_t>(kind)].push_back(tensor.name);
  }
  return unused;
}

std::string FirstOf(const Names& names) {
  constexpr size_t kShown = 3;
  std::string text;
  for (size_t i = 0; i < std::min(kShown, names.size()); ++i) {
    absl::StrAppend(&text, i == 0 ? "" : ", ", names[i]);
  }
  if (names.size() > kShown) {
    absl::StrAppend(&text, ", and ", names.size() - kShown, " more");
  }
  return text;
}

// What was expected instead.
std::string Expected(Unused kind, const ModelConfig& config,
                     const ModelFamily& family) {
  switch (kind) {
    case Unused::kAttentionBias:
      return family.bias_field.empty()
                 ? absl::StrCat(config.family, " has no biases")
                 : absl::StrCat(family.bias_field, " is not true in ",
                                config.file);
    case Unused::kBias:
      return absl::StrCat(config.family, " has no such biases");
    case Unused::kSharedExpert:
      return absl::StrCat(config.family, " has no shared experts");
    case Unused::kForeign:
      return absl::StrCat("a layer of this ", config.family,
                          " has no such tensors");
    case Unused::kBeyondLayers:
      return absl::StrCat("num_hidden_layers is ", config.num_layers);
    case Unused::kTiedHead:
      return "tie_word_embeddings: the embedding is used";
    case Unused::kSpareExpert:
      return absl::StrCat("num_experts is ", config.num_experts,
                          ", each wanted once");
    case Unused::kScale:
      return "scales of what is not quantised here";
    case Unused::kOutside:
      return absl::StrCat(config.family, " has no such tensors");
    case Unused::kHarmless:
      break;
  }
  return "";
}

// Of the kinds [first, last): "a, b, c, and 2 more (num_hidden_layers is 1); d
// (qwen3_moe has no such tensors)".
std::string Describe(const ByKind& unused, size_t first, size_t last,
                     const ModelConfig& config, const ModelFamily& family) {
  std::string text;
  for (size_t kind = first; kind < last; ++kind) {
    const Names& names = unused[kind];
    if (names.empty()) continue;
    absl::StrAppend(&text, text.empty() ? "" : "; ", FirstOf(names), " (",
                    Expected(static_cast<Unused>(kind), config, family), ")");
  }
  return text;
}

size_t Count(const ByKind& unused, size_t first, size_t last) {
  size_t count = 0;
  for (size_t kind = first; kind < last; ++kind) count += unused[kind].size();
  return count;
}

std::string Tensors(size_t count) {
  return count == 1 ? "1 tensor is" : absl::StrCat(count, " tensors are");
}

std::string Remedy(const ByKind& unused, const ModelConfig& config,
                   const ModelFamily& family) {
  const size_t biases =
      unused[static_cast<size_t>(Unused::kAttentionBias)].size();
  if (biases > 0 && biases == Count(unused, 0, kNumErrors) &&
      !family.bias_field.empty()) {
    return absl::StrCat("set \"", family.bias_field, "\": true in ",
                        config.file, " if these weights were trained so");
  }
  return absl::StrCat("use the config.json that belongs to these weights; if ",
                      config.file,
                      " does, their architecture is not supported "
                      "as ",
                      config.family);
}

}  // namespace

absl::StatusOr<std::string> CheckUnusedTensors(const ModelConfig& config,
                                               const Checkpoint& checkpoint,
                                               const ExpertTensors& experts) {
  const ModelFamily* const family = FindFamily(config.family);
  PORTOLAN_CHECK(family != nullptr);  // ParseModelConfig() has found it
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<const TensorInfo*> dense,
                            DenseWeights::Tensors(config, checkpoint));
  const ByKind unused = FindUnused(config, *family, checkpoint, dense, experts);
  if (const size_t wrong = Count(unused, 0, kNumErrors); wrong > 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        checkpoint.dir(), ": ", Tensors(wrong),
        " not used, so the output would not be that of these weights: ",
        Describe(unused, 0, kNumErrors, config, *family), "; ",
        Remedy(unused, config, *family)));
  }
  const size_t others = Count(unused, kNumErrors, kNumKinds);
  if (others == 0) return "";
  return absl::StrCat(checkpoint.dir(), ": ", Tensors(others), " not used: ",
                      Describe(unused, kNumErrors, kNumKinds, config, *family));
}

}  // namespace portolan
