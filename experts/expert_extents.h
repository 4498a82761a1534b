#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace portolan {

// Number formats of stored weights that can be turned into bf16 at load.
// kF8E4M3 comes with the scales of its blocks.
enum class TensorDtype : uint8_t { kBf16, kF16, kF32, kF8E4M3 };

int64_t BytesOf(TensorDtype dtype);

// "BF16", "F16", "F32", "F8_E4M3", as safetensors writes them.
std::string_view TensorDtypeName(TensorDtype dtype);

// The scales of a block-scaled matrix of kF8E4M3, themselves a row-major matrix
// of another dtype in a file: the weight of row r and column c is its e4m3
// value times scale [r / block_rows, c / block_cols].
struct BlockScales {
  std::string file;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  TensorDtype dtype = TensorDtype::kF32;
  int64_t block_rows = 0;
  int64_t block_cols = 0;
  int64_t cols = 0;  // of the weights

  // Scales in a row.
  int64_t blocks_per_row() const {
    return (cols + block_cols - 1) / block_cols;
  }

  friend bool operator==(const BlockScales&, const BlockScales&) = default;
};

// One contiguous range of bytes of a file: whole rows of a row-major matrix.
struct TensorExtent {
  std::string file;     // path
  uint64_t offset = 0;  // from the start of the file; any alignment
  uint64_t bytes = 0;
  TensorDtype dtype = TensorDtype::kBf16;
  std::optional<BlockScales> scales = {};  // of kF8E4M3

  uint64_t scale_bytes() const { return scales ? scales->bytes : 0; }

  friend bool operator==(const TensorExtent&, const TensorExtent&) = default;
};

// Where an expert's three matrices lie in the checkpoint: gate and up are
// [intermediate, hidden], down is [hidden, intermediate].
struct ExpertExtents {
  TensorExtent gate;
  TensorExtent up;
  TensorExtent down;

  // Scales included.
  uint64_t bytes() const {
    return gate.bytes + gate.scale_bytes() + up.bytes + up.scale_bytes() +
           down.bytes + down.scale_bytes();
  }

  friend bool operator==(const ExpertExtents&, const ExpertExtents&) = default;
};

}  // namespace portolan
