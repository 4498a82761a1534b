#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "experts/expert_extents.h"

namespace portolan {

// One tensor of a safetensors file.
struct TensorInfo {
  std::string name;
  std::string dtype;           // as the file says: "BF16", "I64", ...
  std::vector<int64_t> shape;  // row-major; empty: a scalar
  uint64_t offset = 0;         // from the start of the file
  uint64_t bytes = 0;
  int32_t file = 0;  // which file of a checkpoint
};

// The dtype if weights can be loaded from it.
std::optional<TensorDtype> LoadableDtype(std::string_view dtype);

// "[2, 3]", for messages.
std::string ShapeString(const std::vector<int64_t>& shape);

// The length of a safetensors header is the first 8 bytes of the file, little
// endian; longer ones than this are refused, as by the reference reader.
inline constexpr uint64_t kSafetensorsPrefixBytes = 8;
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// Reads a header's JSON. Afterwards every tensor's range lies in the file, has
// the size that shape and dtype give, and the ranges fill the data section
// without a gap or an overlap, in the order returned (by offset).
// Errors: kInvalidArgument naming file, tensor and offset; kDataLoss if the
// file is shorter or longer than its tensors.
absl::StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(
    const std::string& file, std::string_view json, uint64_t file_bytes);

}  // namespace portolan
