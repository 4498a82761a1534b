#include "runtime/model/checkpoint/expert_reader.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "experts/expert_slot.h"
#include "experts/weight_conversion.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace portolan {

absl::Status CheckpointExpertSource::Read(ExpertId id,
                                          std::span<std::byte> slot) {
  PORTOLAN_CHECK(static_cast<int64_t>(slot.size()) >=
                 ExpertSlotBytes(tensors_.shape()));
  if (!tensors_.Contains(id)) {
    return absl::NotFoundError(
        absl::StrCat(checkpoint_.dir(), ": has no expert ", ToString(id)));
  }
  PORTOLAN_ASSIGN_OR_RETURN(AlignedBuffer scratch, TakeScratch());
  const absl::Status read =
      ReadMatrices(tensors_.ExpertExtentsOf(id), scratch.bytes(), slot.data());
  {
    MutexLock lock(mu_);
    scratch_.push_back(std::move(scratch));
  }
  if (read.ok()) return read;
  return absl::Status(
      read.code(), absl::StrCat("expert ", ToString(id), ": ", read.message()));
}

// One matrix, f32 at most.
absl::StatusOr<AlignedBuffer> CheckpointExpertSource::TakeScratch() {
  {
    MutexLock lock(mu_);
    if (!scratch_.empty()) {
      AlignedBuffer scratch = std::move(scratch_.back());
      scratch_.pop_back();
      return scratch;
    }
  }
  const ExpertShape& shape = tensors_.shape();
  return AlignedBuffer::Allocate(
      static_cast<size_t>(shape.hidden * shape.intermediate) * sizeof(float));
}

absl::Status CheckpointExpertSource::ReadMatrices(const ExpertExtents& extents,
                                                  std::span<std::byte> scratch,
                                                  std::byte* slot) {
  const ExpertShape& shape = tensors_.shape();
  using Pack = void (*)(const ExpertShape&, const Bf16*, std::byte*);
  const std::pair<const TensorExtent*, Pack> parts[] = {
      {&extents.gate, PackExpertGate},
      {&extents.up, PackExpertUp},
      {&extents.down, PackExpertDown}};
  for (const auto& [extent, pack] : parts) {
    const std::span<Bf16> matrix(
        reinterpret_cast<Bf16*>(scratch.data()),
        static_cast<size_t>(shape.hidden * shape.intermediate));
    if (extent->scales) {
      PORTOLAN_RETURN_IF_ERROR(
          ReadScaled(*extent, scratch.subspan(matrix.size_bytes()), matrix));
    } else {
      const auto raw = scratch.first(static_cast<size_t>(extent->bytes));
      PORTOLAN_RETURN_IF_ERROR(
          checkpoint_.Read(*extent, raw, ReadPurpose::kExpert));
      ConvertToBf16(extent->dtype, raw, matrix);
    }
    pack(shape, matrix.data(), slot);
  }
  return absl::OkStatus();
}

absl::Status CheckpointExpertSource::ReadScaled(const TensorExtent& extent,
                                                std::span<std::byte> scratch,
                                                std::span<Bf16> matrix) {
  const std::span<std::byte> raw =
      scratch.first(static_cast<size_t>(extent.bytes));
  PORTOLAN_RETURN_IF_ERROR(checkpoint_.Read(extent, raw, ReadPurpose::kExpert));
  const BlockScales& scales = *extent.scales;
  std::vector<std::byte> scale_bytes(static_cast<size_t>(scales.bytes));
  PORTOLAN_RETURN_IF_ERROR(checkpoint_.Read({.file = scales.file,
                                             .offset = scales.offset,
                                             .bytes = scales.bytes,
                                             .dtype = scales.dtype},
                                            scale_bytes, ReadPurpose::kExpert));
  if (ConvertBlocksToBf16(scales, scale_bytes, raw, 0, matrix)) {
    return absl::OkStatus();
  }
  return absl::DataLossError(
      absl::StrCat(scales.file, ": a scale is not finite; the scales lie at ",
                   "byte ", scales.offset));
}

}  // namespace portolan
