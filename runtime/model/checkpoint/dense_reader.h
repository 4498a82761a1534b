#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/bf16.h"
#include "runtime/kernels/packed_matrix.h"
#include "runtime/model/checkpoint/block_scales.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/safetensors.h"

namespace portolan {

// Reads dense tensors of whatever dtype as bf16 (ReadPurpose::kDense) and packs
// matrices of them, through one staging buffer. Private to DenseWeights.
//
// Thread-compatible. Errors of all that read: as Checkpoint::Read();
// kDataLoss (a scale that is not finite); kResourceExhausted (memory).
class DenseReader {
 public:
  // Both must outlive the reader.
  DenseReader(const ModelConfig& config, const Checkpoint& checkpoint)
      : config_(config), checkpoint_(checkpoint) {}

  // The tensor, with its scales noted if it has any; reads nothing. What is
  // read later must have been found here.
  // Errors: as Checkpoint::Get() and FindBlockScales().
  absl::StatusOr<const TensorInfo*> Find(const std::string& name,
                                         const std::vector<int64_t>& shape);

  // Elements [first, first + count) of the tensor, valid until the next call.
  absl::StatusOr<std::span<const Bf16>> Read(const TensorInfo& tensor,
                                             int64_t first, int64_t count);
  absl::Status ReadAll(const TensorInfo& tensor, std::span<Bf16> elements);
  // Of one dimension, widened.
  absl::Status ReadVector(const TensorInfo& tensor, std::vector<float>& out);
  // To `to`, in the shape and format of `matrix`.
  // Errors: also kInvalidArgument (weights that do not fit the format).
  absl::Status ReadMatrix(const TensorInfo& tensor, const PackedMatrix& matrix,
                          std::byte* to);
  // As ReadMatrix(), of elements that are read already.
  absl::Status Pack(const TensorInfo& tensor, std::span<const Bf16> elements,
                    const PackedMatrix& matrix, std::byte* to);

 private:
  // The scales of a tensor, read when it is its turn.
  struct Scales {
    BlockScales scales;
    std::vector<std::byte> bytes;
  };

  // Rows of `matrix` from `first` on, a multiple of kTileOutputs, to where they
  // belong in `to`, all of it.
  absl::Status PackBand(const TensorInfo& tensor, std::span<const Bf16> values,
                        int64_t first, const PackedMatrix& matrix,
                        std::byte* to);
  absl::StatusOr<std::span<const Bf16>> ReadScaled(const TensorInfo& tensor,
                                                   int64_t first,
                                                   std::span<Bf16> values);

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  std::map<const TensorInfo*, Scales> scales_;
  AlignedBuffer staging_;
  std::vector<Bf16> unquantised_;
};

}  // namespace portolan
