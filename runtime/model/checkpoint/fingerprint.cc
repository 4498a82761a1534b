#include "runtime/model/checkpoint/fingerprint.h"

#include <algorithm>
#include <array>
#include <bit>
#include <filesystem>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "experts/hash64.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr size_t kMaxSamples = 256;
constexpr uint64_t kSampleBytes = 64;
// Part of the hash: a change of what is hashed, or how, counts it up.
constexpr int kVersion = 1;

uint64_t HashText(const std::string& text, uint64_t seed) {
  return Hash64(std::as_bytes(std::span(text)), seed);
}

// The bits: decimal digits of a double depend on the library that prints them.
uint64_t Bits(double value) { return std::bit_cast<uint64_t>(value); }

std::string RopeText(const RopeConfig& rope) {
  return absl::StrJoin(
      std::array<uint64_t, 7>{
          Bits(rope.theta), static_cast<uint64_t>(rope.rotary_dim),
          static_cast<uint64_t>(rope.scaling), Bits(rope.factor),
          Bits(rope.low_freq_factor), Bits(rope.high_freq_factor),
          static_cast<uint64_t>(rope.original_max_position)},
      " ");
}

std::string ConfigText(const ModelConfig& c) {
  const std::string sizes = absl::StrJoin(
      std::array<int64_t, 11>{c.num_layers, c.hidden, c.num_heads,
                              c.num_kv_heads, c.head_dim, c.max_position,
                              c.sliding_window, c.vocab_size, c.num_experts,
                              c.top_k, c.expert_intermediate},
      " ");
  const std::string rules = absl::StrJoin(
      std::array<int, 6>{c.has_qk_norm, c.has_qkv_bias, c.has_output_bias,
                         c.tie_embeddings, static_cast<int>(c.gate_score),
                         c.norm_topk_prob},
      " ");
  const std::string blocks =
      c.scale_block_rows == 0
          ? ""
          : absl::StrCat(c.scale_block_rows, " ", c.scale_block_cols, "\n");
  return absl::StrCat(kVersion, "\n", c.family, "\n", sizes, "\n", rules, "\n",
                      Bits(c.rms_eps), "\n", RopeText(c.rope), "\n",
                      c.dense_intermediate, "\n",
                      absl::StrJoin(c.moe_layers, ""), "\n", blocks);
}

std::string TensorText(const TensorInfo& tensor) {
  return absl::StrCat(tensor.name, "\n", tensor.dtype, " ",
                      ShapeString(tensor.shape), " ", tensor.file, " ",
                      tensor.offset, " ", tensor.bytes, "\n");
}

absl::StatusOr<uint64_t> HashSample(const Checkpoint& checkpoint,
                                    const TensorInfo& tensor, uint64_t seed) {
  std::array<std::byte, kSampleBytes> sample;
  const uint64_t length = std::min(kSampleBytes, tensor.bytes);
  const std::span<std::byte> part(sample.data(), static_cast<size_t>(length));
  PORTOLAN_RETURN_IF_ERROR(checkpoint.Read(tensor, (tensor.bytes - length) / 2,
                                           part, ReadPurpose::kMetadata));
  return Hash64(part, seed);
}

}  // namespace

absl::StatusOr<uint64_t> ModelFingerprint(const ModelConfig& config,
                                          const Checkpoint& checkpoint) {
  uint64_t hash = HashText(ConfigText(config), 0);
  for (const RandomAccessFile& file : checkpoint.files()) {
    const std::string name =
        std::filesystem::path(file.path()).filename().string();
    hash = HashText(absl::StrCat(name, "\n", file.size(), "\n"), hash);
  }
  const std::span<const TensorInfo> tensors = checkpoint.tensors();
  for (const TensorInfo& tensor : tensors) {
    hash = HashText(TensorText(tensor), hash);
  }
  const size_t num_samples = std::min(kMaxSamples, tensors.size());
  for (size_t i = 0; i < num_samples; ++i) {
    const TensorInfo& tensor = tensors[i * tensors.size() / num_samples];
    PORTOLAN_ASSIGN_OR_RETURN(hash, HashSample(checkpoint, tensor, hash));
  }
  return hash;
}

}  // namespace portolan
