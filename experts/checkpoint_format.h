#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "experts/expert_extents.h"
#include "experts/expert_shape.h"
#include "experts/record_format.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/bf16.h"

namespace portolan {

// What a load of an expert reads from a checkpoint: the ranges of its three
// matrices, and of their scales where they have any, widened to whole 4 KiB
// blocks; ranges that are near each other in one file become one. Pure.
struct ExpertReadPlan {
  std::vector<FileSegment> segments;     // FileSegment::file: index in `files`
  std::array<uint64_t, 3> landing = {};  // first byte of gate, up, down
  std::array<uint64_t, 3> scale_landing = {};  // and of their scales
  uint64_t landing_bytes = 0;
};

// `files` grows by names that are not in it yet.
ExpertReadPlan PlanExpertRead(const ExpertExtents& extents,
                              std::vector<std::string>& files);

// Experts as they lie in a checkpoint of bf16, f16, f32 or block-scaled fp8:
// they land in a staging buffer and are packed as they enter their slot,
// rounded to bf16 if they are not.
class CheckpointFormat final : public RecordFormat {
 public:
  // The experts that may be loaded, and where they lie: matrices of `shape`.
  // Errors: those of DirectFile::Open().
  static absl::StatusOr<std::unique_ptr<CheckpointFormat>> Open(
      const ExpertShape& shape, std::span<const ExpertId> experts,
      absl::FunctionRef<ExpertExtents(ExpertId)> extents_of,
      DirectFile::Mode mode = DirectFile::Mode::kDirect);

  std::string name() const override { return "checkpoint"; }
  std::span<const DirectFile> files() const override { return files_; }
  size_t staging_bytes() const override { return staging_bytes_; }
  std::span<const FileSegment> Segments(ExpertId id) const override {
    return At(id).plan.segments;
  }
  int64_t LogicalBytes(ExpertId id) const override;
  absl::Status Finish(ExpertId id, std::span<const std::byte> landing,
                      std::span<std::byte> slot) override;

 private:
  struct Entry {
    ExpertReadPlan plan;
    std::array<TensorDtype, 3> dtypes = {};  // of gate, up, down
    std::array<std::optional<BlockScales>, 3> scales = {};
  };

  explicit CheckpointFormat(const ExpertShape& shape) : shape_(shape) {}

  const Entry& At(ExpertId id) const;
  // A matrix in `landing` as bf16: in place if it is that and aligned, else
  // in scratch_ until the next call. Null if a scale is not finite.
  const Bf16* Matrix(const Entry& entry, size_t matrix,
                     std::span<const std::byte> landing);

  const ExpertShape shape_;
  std::vector<DirectFile> files_;
  std::vector<Entry> entries_;
  absl::flat_hash_map<ExpertId, size_t> entry_of_;
  size_t staging_bytes_ = 0;
  std::vector<Bf16> scratch_;  // [hidden * intermediate]
};

}  // namespace portolan
