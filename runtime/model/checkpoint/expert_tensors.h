#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experts/expert_extents.h"
#include "experts/expert_shape.h"
#include "runtime/base/ids.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/safetensors.h"

namespace portolan {

// Where the routed experts of a model lie, whether the checkpoint has one
// tensor per expert and matrix or one per layer for all experts.
//
// Immutable.
class ExpertTensors {
 public:
  // Looks every expert up, reading nothing.
  // Errors: as Checkpoint::Get(), naming the tensor.
  static absl::StatusOr<ExpertTensors> Find(const ModelConfig& config,
                                            const Checkpoint& checkpoint);

  ExpertTensors() = default;

  const ExpertShape& shape() const { return shape_; }
  int num_layers() const { return static_cast<int>(extents_.size()); }
  int num_experts() const { return num_experts_; }

  bool IsMoeLayer(int layer) const {
    return !extents_[static_cast<size_t>(layer)].empty();
  }

  // Whether there is such an expert.
  bool Contains(ExpertId id) const {
    return id.layer >= 0 && id.layer < num_layers() && id.expert >= 0 &&
           id.expert < num_experts_ && IsMoeLayer(id.layer);
  }

  // Requires Contains(id).
  const ExpertExtents& ExpertExtentsOf(ExpertId id) const;

  // Of all experts as they lie in the checkpoint.
  uint64_t total_bytes() const;

 private:
  ExpertTensors(ExpertShape shape, int num_experts)
      : shape_(shape), num_experts_(num_experts) {}

  ExpertShape shape_;
  int num_experts_ = 0;
  std::vector<std::vector<ExpertExtents>> extents_;  // [layer][expert]
};

// Under which name a layer's gate and experts stand: "model.layers.3.mlp".
// Errors: kNotFound naming the gate tensors that were looked for.
absl::StatusOr<std::string> MoeBlockOf(const ModelConfig& config,
                                       const Checkpoint& checkpoint, int layer);

// The three matrices of a dense layer's MLP, [dense_intermediate, hidden].
absl::StatusOr<ExpertExtents> DenseMlpExtentsOf(const ModelConfig& config,
                                                const Checkpoint& checkpoint,
                                                int layer);

}  // namespace portolan
