#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/expert_tensors.h"
#include "runtime/model/checkpoint/safetensors.h"

namespace portolan {

// Looks for tensors that the model does not use: config.json may be that of
// another model. Reads headers only.
//
// Returns what the user should know of them, or "": of layers from num_layers
// on (published checkpoints have some, for multi-token prediction), of a tied
// lm_head, of what stands beside the layers. Tables of rotary embeddings are
// computed here and are not worth a word.
// Errors: kInvalidArgument, with the remedy, if a layer that runs, or the last
// norm or lm_head, has a tensor that would change the output: a bias, a shared
// expert, anything that the family does not know there; as
// DenseWeights::Tensors().
absl::StatusOr<std::string> CheckUnusedTensors(const ModelConfig& config,
                                               const Checkpoint& checkpoint,
                                               const ExpertTensors& experts);

}  // namespace portolan
