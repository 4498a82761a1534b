#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "experts/expert_extents.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/safetensors.h"

namespace portolan {

// The scales of a weight of Checkpoint::Get(), which stand beside it as
// "{name}_scale_inv" [rows / block_rows, cols / block_cols], rounded up, if it
// is stored in F8_E4M3; none for other dtypes.
// Errors: kInvalidArgument if the config states no block size, the weight is no
// matrix, or the scales have another shape; kNotFound if they are missing;
// kUnimplemented if their dtype is none of F32, BF16, F16. All name the tensor.
absl::StatusOr<std::optional<BlockScales>> FindBlockScales(
    const ModelConfig& config, const Checkpoint& checkpoint,
    const TensorInfo& weight);

// ExtentOf(weight) with its scales. Errors: as above.
absl::StatusOr<TensorExtent> WeightExtent(const ModelConfig& config,
                                          const Checkpoint& checkpoint,
                                          const TensorInfo& weight);

}  // namespace portolan
