#include "experts/checkpoint_format.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "experts/expert_slot.h"
#include "experts/weight_conversion.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

// Reading over a gap of this size costs less than a read of its own.
constexpr uint64_t kMergeGap = 32 << 10;

int32_t FileIndex(const std::string& file, std::vector<std::string>& files) {
  const auto found = std::ranges::find(files, file);
  if (found != files.end()) return static_cast<int32_t>(found - files.begin());
  files.push_back(file);
  return static_cast<int32_t>(files.size()) - 1;
}

}  // namespace

ExpertReadPlan PlanExpertRead(const ExpertExtents& extents,
                              std::vector<std::string>& files) {
  ExpertReadPlan plan;
  struct Range {
    uint64_t* landing = nullptr;  // of the plan
    int32_t file = 0;
    uint64_t begin = 0;
    uint64_t end = 0;
  };
  std::vector<Range> ranges;
  size_t matrix = 0;
  for (const TensorExtent* extent :
       {&extents.gate, &extents.up, &extents.down}) {
    ranges.push_back({&plan.landing[matrix], FileIndex(extent->file, files),
                      extent->offset, extent->offset + extent->bytes});
    if (const auto& scales = extent->scales; scales) {
      ranges.push_back({&plan.scale_landing[matrix],
                        FileIndex(scales->file, files), scales->offset,
                        scales->offset + scales->bytes});
    }
    ++matrix;
  }
  std::ranges::sort(ranges, {}, [](const Range& range) {
    return std::pair(range.file, range.begin);
  });

  for (const Range& range : ranges) {
    FileSegment* last = plan.segments.empty() ? nullptr : &plan.segments.back();
    if (last == nullptr || last->file != range.file ||
        range.begin > last->needed_end + kMergeGap) {
      const uint64_t landing =
          last == nullptr ? 0 : last->landing_offset + last->bytes;
      plan.segments.push_back({.file = range.file,
                               .offset = AlignDown(range.begin),
                               .bytes = 0,
                               .landing_offset = landing,
                               .needed_end = 0});
      last = &plan.segments.back();
    }
    last->needed_end = std::max(last->needed_end, range.end);
    last->bytes = AlignUp(last->needed_end) - last->offset;
    *range.landing = last->landing_offset + (range.begin - last->offset);
    plan.landing_bytes = last->landing_offset + last->bytes;
  }
  return plan;
}

absl::StatusOr<std::unique_ptr<CheckpointFormat>> CheckpointFormat::Open(
    const ExpertShape& shape, std::span<const ExpertId> experts,
    absl::FunctionRef<ExpertExtents(ExpertId)> extents_of,
    DirectFile::Mode mode) {
  std::unique_ptr<CheckpointFormat> format(new CheckpointFormat(shape));
  const auto elements = static_cast<uint64_t>(shape.hidden) *
                        static_cast<uint64_t>(shape.intermediate);
  format->scratch_.resize(elements);
  std::vector<std::string> files;
  for (const ExpertId id : experts) {
    const ExpertExtents extents = extents_of(id);
    const std::array<const TensorExtent*, 3> matrices = {
        &extents.gate, &extents.up, &extents.down};
    Entry entry{.plan = PlanExpertRead(extents, files)};
    for (size_t i = 0; i < matrices.size(); ++i) {
      entry.dtypes[i] = matrices[i]->dtype;
      entry.scales[i] = matrices[i]->scales;
      PORTOLAN_CHECK(entry.scales[i].has_value() ==
                     (entry.dtypes[i] == TensorDtype::kF8E4M3));
      PORTOLAN_CHECK(matrices[i]->bytes ==
                     elements *
                         static_cast<uint64_t>(BytesOf(matrices[i]->dtype)));
    }
    format->staging_bytes_ =
        std::max<size_t>(format->staging_bytes_, entry.plan.landing_bytes);
    format->entry_of_.emplace(id, format->entries_.size());
    format->entries_.push_back(std::move(entry));
  }
  for (const std::string& path : files) {
    PORTOLAN_ASSIGN_OR_RETURN(DirectFile file, DirectFile::Open(path, mode));
    format->files_.push_back(std::move(file));
  }
  return format;
}

const CheckpointFormat::Entry& CheckpointFormat::At(ExpertId id) const {
  const auto found = entry_of_.find(id);
  PORTOLAN_CHECK(found != entry_of_.end());
  return entries_[found->second];
}

int64_t CheckpointFormat::LogicalBytes(ExpertId id) const {
  const Entry& entry = At(id);
  int64_t bytes = 0;
  for (const TensorDtype dtype : entry.dtypes) {
    bytes += BytesOf(dtype) * shape_.hidden * shape_.intermediate;
  }
  for (const std::optional<BlockScales>& scales : entry.scales) {
    if (scales) bytes += static_cast<int64_t>(scales->bytes);
  }
  return bytes;
}

const Bf16* CheckpointFormat::Matrix(const Entry& entry, size_t matrix,
                                     std::span<const std::byte> landing) {
  const uint64_t offset = entry.plan.landing[matrix];
  const TensorDtype dtype = entry.dtypes[matrix];
  if (dtype == TensorDtype::kBf16 && offset % alignof(Bf16) == 0) {
    return reinterpret_cast<const Bf16*>(landing.data() + offset);
  }
  const auto stored = landing.subspan(
      offset, scratch_.size() * static_cast<size_t>(BytesOf(dtype)));
  if (const std::optional<BlockScales>& scales = entry.scales[matrix]; scales) {
    const auto scale_bytes =
        landing.subspan(entry.plan.scale_landing[matrix], scales->bytes);
    return ConvertBlocksToBf16(*scales, scale_bytes, stored, 0, scratch_)
               ? scratch_.data()
               : nullptr;
  }
  ConvertToBf16(dtype, stored, scratch_);
  return scratch_.data();
}

absl::Status CheckpointFormat::Finish(ExpertId id,
                                      std::span<const std::byte> landing,
                                      std::span<std::byte> slot) {
  PORTOLAN_CHECK(static_cast<int64_t>(slot.size()) == ExpertSlotBytes(shape_));
  const Entry& entry = At(id);
  using Pack = void (*)(const ExpertShape&, const Bf16*, std::byte*);
  constexpr std::array<Pack, 3> kPacks = {PackExpertGate, PackExpertUp,
                                          PackExpertDown};
  for (size_t i = 0; i < kPacks.size(); ++i) {
    const Bf16* matrix = Matrix(entry, i, landing);
    if (matrix == nullptr) {
      return absl::DataLossError(
          absl::StrCat(entry.scales[i]->file, ": expert ", ToString(id),
                       ": a scale is not finite; the scales lie at byte ",
                       entry.scales[i]->offset));
    }
    kPacks[i](shape_, matrix, slot.data());
  }
  return absl::OkStatus();
}

}  // namespace portolan
