#include "runtime/model/checkpoint/block_scales.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

absl::Status Fault(const Checkpoint& checkpoint, const TensorInfo& weight,
                   const std::string& why) {
  const RandomAccessFile& file =
      checkpoint.files()[static_cast<size_t>(weight.file)];
  return absl::InvalidArgumentError(
      absl::StrCat(file.path(), ": tensor ", weight.name, ": ", why));
}

}  // namespace

absl::StatusOr<std::optional<BlockScales>> FindBlockScales(
    const ModelConfig& config, const Checkpoint& checkpoint,
    const TensorInfo& weight) {
  if (LoadableDtype(weight.dtype) != TensorDtype::kF8E4M3) return std::nullopt;
  if (config.scale_block_rows == 0) {
    return Fault(checkpoint, weight,
                 absl::StrCat("is F8_E4M3, but ", config.file,
                              " states no quantization_config."
                              "weight_block_size"));
  }
  if (weight.shape.size() != 2) {
    return Fault(checkpoint, weight,
                 absl::StrCat("F8_E4M3 of shape ", ShapeString(weight.shape),
                              " is not supported; supported: matrices"));
  }
  const int64_t rows = weight.shape[0];
  const int64_t cols = weight.shape[1];
  const int64_t row_blocks =
      (rows + config.scale_block_rows - 1) / config.scale_block_rows;
  const int64_t col_blocks =
      (cols + config.scale_block_cols - 1) / config.scale_block_cols;
  PORTOLAN_ASSIGN_OR_RETURN(
      const TensorInfo* scales,
      checkpoint.Get(absl::StrCat(weight.name, "_scale_inv"),
                     {row_blocks, col_blocks}));
  const TensorExtent extent = checkpoint.ExtentOf(*scales);
  if (extent.dtype == TensorDtype::kF8E4M3) {
    return absl::UnimplementedError(absl::StrCat(
        extent.file, ": tensor ", scales->name, ": dtype ", scales->dtype,
        " of scales is not supported; supported: ", "F32, BF16, F16"));
  }
  return BlockScales{.file = extent.file,
                     .offset = extent.offset,
                     .bytes = extent.bytes,
                     .dtype = extent.dtype,
                     .block_rows = config.scale_block_rows,
                     .block_cols = config.scale_block_cols,
                     .cols = cols};
}

absl::StatusOr<TensorExtent> WeightExtent(const ModelConfig& config,
                                          const Checkpoint& checkpoint,
                                          const TensorInfo& weight) {
  TensorExtent extent = checkpoint.ExtentOf(weight);
  PORTOLAN_ASSIGN_OR_RETURN(extent.scales,
                            FindBlockScales(config, checkpoint, weight));
  return extent;
}

}  // namespace portolan
