#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/safetensors.h"

namespace portolan {

// Tells models apart: a hash over what the forward pass takes from the config,
// every tensor's name, dtype, shape, file and range, the files' sizes, and 64
// bytes from the middle of up to 256 tensors (read as ReadPurpose::kMetadata).
// Equal on every host and in every directory. Not against forgers, and blind
// to a change of other weights in place.
// Errors: as Checkpoint::Read().
absl::StatusOr<uint64_t> ModelFingerprint(const ModelConfig& config,
                                          const Checkpoint& checkpoint);

}  // namespace portolan
