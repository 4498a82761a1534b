#include "runtime/model/checkpoint/expert_tensors.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/checkpoint/block_scales.h"
#include "runtime/model/checkpoint/family.h"

namespace portolan {
namespace {

std::string LayerName(int layer) {
  return absl::StrCat("model.layers.", layer);
}

const ModelFamily& FamilyOf(const ModelConfig& config) {
  const ModelFamily* family = FindFamily(config.family);
  PORTOLAN_CHECK(family != nullptr);  // ParseModelConfig() has found it
  return *family;
}

absl::StatusOr<TensorExtent> MatrixExtent(const ModelConfig& config,
                                          const Checkpoint& checkpoint,
                                          const std::string& name, int64_t rows,
                                          int64_t cols) {
  PORTOLAN_ASSIGN_OR_RETURN(const TensorInfo* tensor,
                            checkpoint.Get(name, {rows, cols}));
  return WeightExtent(config, checkpoint, *tensor);
}

// Part `index` of `extent` when it is cut into `count` equal parts.
TensorExtent PartOf(const TensorExtent& extent, int64_t index, int64_t count) {
  TensorExtent part = extent;
  part.bytes = extent.bytes / static_cast<uint64_t>(count);
  part.offset += part.bytes * static_cast<uint64_t>(index);
  return part;
}

absl::StatusOr<std::vector<ExpertExtents>> FusedExperts(
    const ModelConfig& config, const Checkpoint& checkpoint,
    const std::string& gate_up_name, const std::string& down_name) {
  const int64_t experts = config.num_experts;
  const int64_t width = config.expert_intermediate;
  PORTOLAN_ASSIGN_OR_RETURN(
      const TensorInfo* gate_up,
      checkpoint.Get(gate_up_name, {experts, 2 * width, config.hidden}));
  PORTOLAN_ASSIGN_OR_RETURN(
      const TensorInfo* down,
      checkpoint.Get(down_name, {experts, config.hidden, width}));
  // Refuses fp8: no checkpoint is known that holds it fused.
  PORTOLAN_ASSIGN_OR_RETURN(const TensorExtent gate_up_extent,
                            WeightExtent(config, checkpoint, *gate_up));
  PORTOLAN_ASSIGN_OR_RETURN(const TensorExtent down_extent,
                            WeightExtent(config, checkpoint, *down));
  std::vector<ExpertExtents> extents;
  for (int64_t e = 0; e < experts; ++e) {
    extents.push_back({.gate = PartOf(gate_up_extent, 2 * e, 2 * experts),
                       .up = PartOf(gate_up_extent, 2 * e + 1, 2 * experts),
                       .down = PartOf(down_extent, e, experts)});
  }
  return extents;
}

// The names of an MLP's matrices before ".weight".
struct MlpNames {
  std::string gate, up, down;
};

absl::StatusOr<ExpertExtents> MlpExtents(const ModelConfig& config,
                                         const Checkpoint& checkpoint,
                                         const MlpNames& names, int64_t width) {
  const int64_t hidden = config.hidden;
  ExpertExtents extents;
  PORTOLAN_ASSIGN_OR_RETURN(
      extents.gate,
      MatrixExtent(config, checkpoint, absl::StrCat(names.gate, ".weight"),
                   width, hidden));
  PORTOLAN_ASSIGN_OR_RETURN(
      extents.up,
      MatrixExtent(config, checkpoint, absl::StrCat(names.up, ".weight"), width,
                   hidden));
  PORTOLAN_ASSIGN_OR_RETURN(
      extents.down,
      MatrixExtent(config, checkpoint, absl::StrCat(names.down, ".weight"),
                   hidden, width));
  return extents;
}

absl::StatusOr<std::vector<ExpertExtents>> SeparateExperts(
    const ModelConfig& config, const Checkpoint& checkpoint,
    const std::string& experts_name) {
  const ModelFamily& family = FamilyOf(config);
  std::vector<ExpertExtents> experts;
  for (int e = 0; e < config.num_experts; ++e) {
    const std::string expert = absl::StrCat(experts_name, ".", e, ".");
    PORTOLAN_ASSIGN_OR_RETURN(experts.emplace_back(),
                              MlpExtents(config, checkpoint,
                                         {absl::StrCat(expert, family.gate),
                                          absl::StrCat(expert, family.up),
                                          absl::StrCat(expert, family.down)},
                                         config.expert_intermediate));
  }
  return experts;
}

absl::StatusOr<std::vector<ExpertExtents>> ExpertsOfLayer(
    const ModelConfig& config, const Checkpoint& checkpoint, int layer) {
  PORTOLAN_ASSIGN_OR_RETURN(const std::string block,
                            MoeBlockOf(config, checkpoint, layer));
  const std::string experts = absl::StrCat(block, ".experts");
  const std::string gate_up = absl::StrCat(experts, ".gate_up_proj");
  const std::string down = absl::StrCat(experts, ".down_proj");
  if (checkpoint.Find(gate_up) != nullptr) {
    return FusedExperts(config, checkpoint, gate_up, down);
  }
  return SeparateExperts(config, checkpoint, experts);
}

}  // namespace

absl::StatusOr<ExpertTensors> ExpertTensors::Find(
    const ModelConfig& config, const Checkpoint& checkpoint) {
  ExpertTensors found(
      {.hidden = config.hidden, .intermediate = config.expert_intermediate},
      config.num_experts);
  found.extents_.resize(static_cast<size_t>(config.num_layers));
  for (int layer = 0; layer < config.num_layers; ++layer) {
    if (!config.IsMoeLayer(layer)) continue;
    PORTOLAN_ASSIGN_OR_RETURN(found.extents_[static_cast<size_t>(layer)],
                              ExpertsOfLayer(config, checkpoint, layer));
  }
  return found;
}

const ExpertExtents& ExpertTensors::ExpertExtentsOf(ExpertId id) const {
  PORTOLAN_CHECK(Contains(id));
  return extents_[static_cast<size_t>(id.layer)]
                 [static_cast<size_t>(id.expert)];
}

uint64_t ExpertTensors::total_bytes() const {
  uint64_t bytes = 0;
  for (const auto& layer : extents_) {
    for (const ExpertExtents& expert : layer) bytes += expert.bytes();
  }
  return bytes;
}

absl::StatusOr<std::string> MoeBlockOf(const ModelConfig& config,
                                       const Checkpoint& checkpoint,
                                       int layer) {
  std::string searched;
  for (const std::string& name : FamilyOf(config).moe_blocks) {
    const std::string block = absl::StrCat(LayerName(layer), ".", name);
    const std::string gate = absl::StrCat(block, ".gate.weight");
    if (checkpoint.Find(gate) != nullptr) return block;
    absl::StrAppend(&searched, searched.empty() ? "" : " or ", gate);
  }
  return absl::NotFoundError(absl::StrCat(
      "tensor ", searched, ": not found in the checkpoint ", checkpoint.dir()));
}

absl::StatusOr<ExpertExtents> DenseMlpExtentsOf(const ModelConfig& config,
                                                const Checkpoint& checkpoint,
                                                int layer) {
  const std::string mlp = absl::StrCat(LayerName(layer), ".mlp.");
  return MlpExtents(
      config, checkpoint,
      {absl::StrCat(mlp, "gate_proj"), absl::StrCat(mlp, "up_proj"),
       absl::StrCat(mlp, "down_proj")},
      config.dense_intermediate);
}

}  // namespace portolan
