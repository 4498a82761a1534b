#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "experts/expert_shape.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/bf16.h"
#include "runtime/kernels/packed_matrix.h"
#include "runtime/model/checkpoint/config.h"
#include "runtime/model/checkpoint/safetensors.h"

namespace portolan {

// What one layer has beside its routed experts. Matrices are [outputs, inputs];
// an empty vector or matrix: the model has none.
struct LayerWeights {
  std::vector<float> input_norm;           // [hidden]
  std::vector<float> post_attention_norm;  // [hidden]
  PackedMatrix q;                          // [num_heads * head_dim, hidden]
  PackedMatrix k;                          // [num_kv_heads * head_dim, hidden]
  PackedMatrix v;
  PackedMatrix o;  // [hidden, num_heads * head_dim]
  std::vector<float> q_bias;
  std::vector<float> k_bias;
  std::vector<float> v_bias;
  std::vector<float> o_bias;
  std::vector<float> q_norm;  // [head_dim]
  std::vector<float> k_norm;

  PackedMatrix gate;  // [num_experts, hidden], of a MoE layer
  // The MLP of a dense layer: an expert of DenseMlpShape() that every token
  // chooses with weight 1, as a slot of expert_slot.h in DenseWeights::format.
  const std::byte* dense_mlp = nullptr;
};

// The weights that every rank holds: all but the routed experts, rounded to
// bf16 where the checkpoint has f16 or f32, norms and biases then widened.
//
// Movable; pointers into it stay valid. Thread-safe once loaded.
struct DenseWeights {
  using Progress =
      absl::FunctionRef<void(int64_t bytes_done, int64_t bytes_total)>;
  using Notice = absl::FunctionRef<void(const std::string& text)>;

  // Checks all tensors before it reads the first, then reads them in file
  // order (ReadPurpose::kDense). `notice` is called at most once, if weights
  // (experts included) are rounded. All matrices but those of gates
  // are held as `format`, quantised from bf16 as they are read.
  // Errors: as Checkpoint::Get() and Read(); kResourceExhausted (memory);
  // kInvalidArgument (weights that do not fit `format`).
  static absl::StatusOr<DenseWeights> Load(
      const ModelConfig& config, const Checkpoint& checkpoint,
      Progress progress = [](int64_t, int64_t) {},
      Notice notice = [](const std::string&) {},
      WeightFormat format = WeightFormat::kBf16);

  // What Load() would hold, from the tensors' headers: reads nothing. Vectors
  // (norms, biases) are too small to count.
  // Errors: as Checkpoint::Get().
  static absl::StatusOr<int64_t> BytesNeeded(
      const ModelConfig& config, const Checkpoint& checkpoint,
      WeightFormat format = WeightFormat::kBf16);

  // What Load() would read, scales included: reads nothing.
  // Errors: as Checkpoint::Get().
  static absl::StatusOr<std::vector<const TensorInfo*>> Tensors(
      const ModelConfig& config, const Checkpoint& checkpoint);

  // Of a token below vocab_size: [hidden].
  std::span<const Bf16> Embedding(int32_t token) const {
    return std::span<const Bf16>(embedding).subspan(
        static_cast<size_t>(token * hidden), static_cast<size_t>(hidden));
  }

  // Bytes of memory held.
  int64_t bytes() const;

  int64_t hidden = 0;
  WeightFormat format = WeightFormat::kBf16;
  std::span<const Bf16> embedding;  // [vocab_size, hidden]
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;  // [hidden]
  PackedMatrix lm_head;           // [vocab_size, hidden]

  std::vector<AlignedBuffer> buffers;  // what the views above point into
};

// Of the MLP in dense layers; 0 wide if there are none.
ExpertShape DenseMlpShape(const ModelConfig& config);

}  // namespace portolan
