#include "runtime/model/checkpoint/dense_reader.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "experts/weight_conversion.h"
#include "runtime/base/status_macros.h"
#include "runtime/kernels/quantise.h"

namespace portolan {
namespace {

// Matrices pass through a staging buffer of about this size, in bands of rows.
constexpr int64_t kStagingBytes = 8 << 20;

// Of whole blocks of outputs, which follow each other when packed.
int64_t RowsOfBand(int64_t row_bytes) {
  return kTileOutputs *
         std::max<int64_t>(1, kStagingBytes / (row_bytes * kTileOutputs));
}

}  // namespace

absl::StatusOr<const TensorInfo*> DenseReader::Find(
    const std::string& name, const std::vector<int64_t>& shape) {
  PORTOLAN_ASSIGN_OR_RETURN(const TensorInfo* tensor,
                            checkpoint_.Get(name, shape));
  PORTOLAN_ASSIGN_OR_RETURN(const std::optional<BlockScales> scales,
                            FindBlockScales(config_, checkpoint_, *tensor));
  if (scales) scales_[tensor].scales = *scales;
  return tensor;
}

absl::StatusOr<std::span<const Bf16>> DenseReader::Read(
    const TensorInfo& tensor, int64_t first, int64_t count) {
  const TensorDtype dtype = *LoadableDtype(tensor.dtype);  // Find() has checked
  const auto element_bytes = static_cast<uint64_t>(BytesOf(dtype));
  // At least as much as bf16 takes.
  const auto bytes = static_cast<size_t>(count) *
                     std::max<uint64_t>(element_bytes, sizeof(Bf16));
  if (staging_.size() < bytes) {
    PORTOLAN_ASSIGN_OR_RETURN(
        staging_, AlignedBuffer::Allocate(
                      std::max(bytes, static_cast<size_t>(kStagingBytes))));
  }
  const std::span<Bf16> values(reinterpret_cast<Bf16*>(staging_.data()),
                               static_cast<size_t>(count));
  if (dtype == TensorDtype::kF8E4M3) return ReadScaled(tensor, first, values);
  const std::span<std::byte> raw = staging_.bytes().first(bytes);
  PORTOLAN_RETURN_IF_ERROR(
      checkpoint_.Read(tensor, static_cast<uint64_t>(first) * element_bytes,
                       raw, ReadPurpose::kDense));
  ConvertToBf16(dtype, raw, values);
  return values;
}

absl::StatusOr<std::span<const Bf16>> DenseReader::ReadScaled(
    const TensorInfo& tensor, int64_t first, std::span<Bf16> values) {
  Scales& scales = scales_.at(&tensor);
  if (scales.bytes.empty()) {
    scales.bytes.resize(static_cast<size_t>(scales.scales.bytes));
    PORTOLAN_RETURN_IF_ERROR(checkpoint_.Read({.file = scales.scales.file,
                                               .offset = scales.scales.offset,
                                               .bytes = scales.scales.bytes,
                                               .dtype = scales.scales.dtype},
                                              scales.bytes,
                                              ReadPurpose::kDense));
  }
  const std::span<std::byte> raw =
      std::as_writable_bytes(values).last(values.size());
  PORTOLAN_RETURN_IF_ERROR(checkpoint_.Read(
      tensor, static_cast<uint64_t>(first), raw, ReadPurpose::kDense));
  if (ConvertBlocksToBf16(scales.scales, scales.bytes, raw, first, values)) {
    return values;
  }
  return absl::DataLossError(absl::StrCat(scales.scales.file, ": tensor ",
                                          tensor.name,
                                          "_scale_inv: a scale is not finite"));
}

absl::Status DenseReader::ReadAll(const TensorInfo& tensor,
                                  std::span<Bf16> elements) {
  constexpr size_t kBand = kStagingBytes / sizeof(float);
  for (size_t first = 0; first < elements.size(); first += kBand) {
    const size_t count = std::min(kBand, elements.size() - first);
    PORTOLAN_ASSIGN_OR_RETURN(
        const std::span<const Bf16> values,
        Read(tensor, static_cast<int64_t>(first), static_cast<int64_t>(count)));
    std::ranges::copy(values, elements.subspan(first).begin());
  }
  return absl::OkStatus();
}

absl::Status DenseReader::ReadVector(const TensorInfo& tensor,
                                     std::vector<float>& out) {
  const int64_t size = tensor.shape[0];
  PORTOLAN_ASSIGN_OR_RETURN(const std::span<const Bf16> values,
                            Read(tensor, 0, size));
  out.resize(values.size());
  std::ranges::transform(values, out.begin(),
                         [](Bf16 value) { return ToFloat(value); });
  return absl::OkStatus();
}

absl::Status DenseReader::ReadMatrix(const TensorInfo& tensor,
                                     const PackedMatrix& matrix,
                                     std::byte* to) {
  const int64_t band =
      RowsOfBand(static_cast<int64_t>(tensor.bytes) / matrix.n);
  for (int64_t row = 0; row < matrix.n; row += band) {
    const int64_t count = std::min(band, matrix.n - row);
    PORTOLAN_ASSIGN_OR_RETURN(const std::span<const Bf16> values,
                              Read(tensor, row * matrix.k, count * matrix.k));
    PORTOLAN_RETURN_IF_ERROR(PackBand(tensor, values, row, matrix, to));
  }
  return absl::OkStatus();
}

absl::Status DenseReader::Pack(const TensorInfo& tensor,
                               std::span<const Bf16> elements,
                               const PackedMatrix& matrix, std::byte* to) {
  const int64_t band =
      RowsOfBand(matrix.k * static_cast<int64_t>(sizeof(Bf16)));
  for (int64_t row = 0; row < matrix.n; row += band) {
    const int64_t count = std::min(band, matrix.n - row);
    PORTOLAN_RETURN_IF_ERROR(
        PackBand(tensor,
                 elements.subspan(static_cast<size_t>(row * matrix.k),
                                  static_cast<size_t>(count * matrix.k)),
                 row, matrix, to));
  }
  return absl::OkStatus();
}

absl::Status DenseReader::PackBand(const TensorInfo& tensor,
                                   std::span<const Bf16> values, int64_t first,
                                   const PackedMatrix& matrix, std::byte* to) {
  const int64_t rows = static_cast<int64_t>(values.size()) / matrix.k;
  to += PackedBytes(first, matrix.k, matrix.format);
  if (matrix.format == WeightFormat::kBf16) {
    PackMatrix(values.data(), matrix.k, rows, matrix.k,
               reinterpret_cast<Bf16*>(to));
    return absl::OkStatus();
  }
  const int64_t num_tiles = NumOutputBlocks(rows) * NumInputBlocks(matrix.k);
  unquantised_.resize(static_cast<size_t>(num_tiles * kTileElements));
  PackMatrix(values.data(), matrix.k, rows, matrix.k, unquantised_.data());
  QuantisationError error;
  if (!QuantiseTiles(matrix.format, unquantised_.data(), num_tiles, to,
                     error)) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint_.dir(), ": tensor ", tensor.name,
                     " has weights that are not finite or too large for ",
                     std::string(WeightFormatName(matrix.format)),
                     "; use --dense-weights bf16"));
  }
  return absl::OkStatus();
}

}  // namespace portolan
