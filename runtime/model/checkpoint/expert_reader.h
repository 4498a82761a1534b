#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "experts/expert_source.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/bf16.h"
#include "runtime/base/mutex.h"
#include "runtime/model/checkpoint/expert_tensors.h"
#include "runtime/model/checkpoint/safetensors.h"

namespace portolan {

// Experts straight out of the checkpoint, read by pread (through the page
// cache) and packed on the calling thread. It blocks; for start-up, tools and
// as the plain reference of the asynchronous sources.
//
// Thread-safe.
class CheckpointExpertSource final : public ExpertSource {
 public:
  // Both must outlive the source.
  CheckpointExpertSource(const ExpertTensors& tensors,
                         const Checkpoint& checkpoint)
      : tensors_(tensors), checkpoint_(checkpoint) {}

  // Requires slot.size() >= ExpertSlotBytes(tensors.shape()).
  absl::Status Read(ExpertId id, std::span<std::byte> slot) override
      ABSL_LOCKS_EXCLUDED(mu_);

 private:
  absl::StatusOr<AlignedBuffer> TakeScratch() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status ReadMatrices(const ExpertExtents& extents,
                            std::span<std::byte> scratch, std::byte* slot);
  // A block-scaled matrix; `scratch` has room for its bytes.
  absl::Status ReadScaled(const TensorExtent& extent,
                          std::span<std::byte> scratch, std::span<Bf16> matrix);

  const ExpertTensors& tensors_;
  const Checkpoint& checkpoint_;

  Mutex mu_;
  std::vector<AlignedBuffer> scratch_ ABSL_GUARDED_BY(mu_);  // not in use
};

}  // namespace portolan
