#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "experts/chunked_source.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/mutex.h"

namespace portolan {

// Experts that wait, kernel-ready, in host memory: the tier between disk and
// fast memory. Its memory is counted apart from --expert-memory. Thread rules
// as ChunkedSource.
class HostSource final : public ChunkedSource {
 public:
  using Progress = absl::FunctionRef<void(int64_t done, int64_t total)>;

  // Loads `experts` from `origin`, which is not needed afterwards. `progress`
  // counts experts.
  // Errors: kResourceExhausted (memory), those of LoadExpert().
  static absl::StatusOr<std::unique_ptr<HostSource>> Load(
      ChunkedSource& origin, std::span<const ExpertId> experts,
      size_t slot_bytes, Progress progress);

  std::string name() const override { return "host memory"; }
  size_t staging_bytes() const override { return 0; }
  // As the experts of a checkpoint, whose matrices are read one by one: demand
  // waits for no more than a third of an expert.
  int32_t NumChunks(ExpertId id) const override;
  int64_t LogicalBytes(ExpertId /*id*/) const override {
    return static_cast<int64_t>(slot_bytes_);
  }
  int64_t bytes_read() const override { return bytes_read_; }
  uint64_t FileOrder(ExpertId id) const override { return Record(id); }
  int queue_depth() const override { return 2; }
  void Submit(const ChunkRead& read) override;
  void Wait(absl::Duration timeout, std::vector<ChunkDone>& done) override
      ABSL_LOCKS_EXCLUDED(mu_);
  void Wake() override ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Finish(ExpertId /*id*/, std::span<const std::byte> /*landing*/,
                      std::span<std::byte> /*slot*/) override {
    return absl::OkStatus();
  }

 private:
  HostSource(AlignedBuffer records, size_t slot_bytes);

  // Where the expert's bytes start.
  size_t Record(ExpertId id) const;

  const AlignedBuffer records_;
  const size_t slot_bytes_;
  const size_t chunk_bytes_;
  int64_t bytes_read_ = 0;                           // by Load()
  absl::flat_hash_map<ExpertId, size_t> record_of_;  // index
  std::vector<ChunkDone> done_;  // copied, not yet handed out

  Mutex mu_;
  CondVar wake_up_;
  bool woken_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace portolan
