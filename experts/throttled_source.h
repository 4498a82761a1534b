#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "experts/chunked_source.h"
#include "experts/link_model.h"

namespace portolan {

// Slows a source down to a link of stated bandwidth and latency, so that
// experiments repeat on any machine: a chunk is done no earlier than the source
// has it and LinkModel lets it arrive. Each load is charged `load_bytes`,
// whatever the source reads for it. Thread rules as ChunkedSource.
class ThrottledSource final : public ChunkedSource {
 public:
  using Clock = std::function<absl::Time()>;

  // `clock`: SteadyNow(), or a test's. It must agree with the timeouts that
  // the source's Wait() takes. `spin`: the last part of a wait for the link is
  // spent polling, since timers of a virtual machine oversleep by tens of
  // microseconds; costs CPU.
  ThrottledSource(std::unique_ptr<ChunkedSource> source, const LinkSpec& link,
                  int64_t load_bytes, Clock clock,
                  absl::Duration spin = absl::ZeroDuration());

  std::string name() const override;
  size_t staging_bytes() const override { return source_->staging_bytes(); }
  int32_t NumChunks(ExpertId id) const override {
    return source_->NumChunks(id);
  }
  int64_t LogicalBytes(ExpertId id) const override {
    return source_->LogicalBytes(id);
  }
  int64_t bytes_read() const override { return source_->bytes_read(); }
  uint64_t FileOrder(ExpertId id) const override {
    return source_->FileOrder(id);
  }
  int queue_depth() const override { return source_->queue_depth(); }
  // One link: a second speculative chunk would only wait.
  int speculative_depth() const override { return 1; }
  std::optional<LinkSpec> link() const override { return spec_; }

  void Submit(const ChunkRead& read) override;
  void Wait(absl::Duration timeout, std::vector<ChunkDone>& done) override;
  void Wake() override { source_->Wake(); }
  absl::Status Finish(ExpertId id, std::span<const std::byte> landing,
                      std::span<std::byte> slot) override {
    return source_->Finish(id, landing, slot);
  }

 private:
  struct Pending {
    uint64_t number = 0;   // the tag inside
    uint64_t tag = 0;      // the caller's, which several chunks may share
    bool arrived = false;  // over the link
    bool read = false;     // by the source, with `status`
    absl::Status status;
  };

  Pending& Find(uint64_t number);
  absl::Time Requested(const ChunkRead& read);
  // Moves what has come over the link and is read to `done`.
  bool TakeDone(std::vector<ChunkDone>& done);

  const std::unique_ptr<ChunkedSource> source_;
  const LinkSpec spec_;
  const int64_t load_bytes_;
  const Clock clock_;
  const absl::Duration spin_;
  LinkModel link_;
  uint64_t num_submitted_ = 0;
  absl::Time last_request_ = absl::InfinitePast();
  std::vector<Pending> pending_;  // at most queue_depth()
  std::vector<ChunkDone> source_done_;
};

}  // namespace portolan
