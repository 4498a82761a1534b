#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace portolan {

// Number formats of stored weights that can be turned into bf16 at load.
enum class TensorDtype : uint8_t { kBf16, kF16, kF32 };

int64_t BytesOf(TensorDtype dtype);

// "BF16", "F16", "F32", as safetensors writes them.
std::string_view TensorDtypeName(TensorDtype dtype);

// One contiguous range of bytes of a file: whole rows of a row-major matrix.
struct TensorExtent {
  std::string file;     // path
  uint64_t offset = 0;  // from the start of the file; any alignment
  uint64_t bytes = 0;
  TensorDtype dtype = TensorDtype::kBf16;

  friend bool operator==(const TensorExtent&, const TensorExtent&) = default;
};

// Where an expert's three matrices lie in the checkpoint: gate and up are
// [intermediate, hidden], down is [hidden, intermediate].
struct ExpertExtents {
  TensorExtent gate;
  TensorExtent up;
  TensorExtent down;

  uint64_t bytes() const { return gate.bytes + up.bytes + down.bytes; }

  friend bool operator==(const ExpertExtents&, const ExpertExtents&) = default;
};

}  // namespace portolan
