#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "experts/chunked_source.h"
#include "runtime/base/mutex.h"

namespace portolan {

inline constexpr size_t kFakeSlotBytes = 8192;

// Every byte of an expert is this.
inline std::byte FakeByte(ExpertId id) {
  return static_cast<std::byte>(1 + id.layer * 31 + id.expert);
}

inline bool HoldsExpert(const std::byte* slot, ExpertId id) {
  return std::all_of(slot, slot + kFakeSlotBytes,
                     [&](std::byte b) { return b == FakeByte(id); });
}

// A source whose chunks are done when the test says so. Thread-safe.
class FakeSource final : public ChunkedSource {
 public:
  struct Options {
    int32_t num_chunks = 2;
    int depth = 4;
    int speculative_depth = 1;
    bool staging = false;
    bool hold = false;  // chunks wait for Finish*() of the test
  };

  explicit FakeSource(const Options& options) : options_(options) {}

  std::string name() const override { return "fake"; }
  size_t staging_bytes() const override {
    return options_.staging ? kFakeSlotBytes : 0;
  }
  int32_t NumChunks(ExpertId) const override { return options_.num_chunks; }
  int64_t LogicalBytes(ExpertId) const override { return kFakeSlotBytes - 1; }
  uint64_t FileOrder(ExpertId id) const override {
    return static_cast<uint64_t>(1000 * id.layer - id.expert + 999);
  }
  int queue_depth() const override { return options_.depth; }
  int speculative_depth() const override { return options_.speculative_depth; }

  void Submit(const ChunkRead& read) override ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(mu_);
      for (const ChunkRead& other : pending_) {
        // Of one expert there is one load at a time, into one place.
        if (other.id == read.id &&
            (other.chunk == read.chunk ||
             other.landing.data() != read.landing.data())) {
          ++double_reads_;
        }
      }
      submitted_.push_back(read);
      pending_.push_back(read);
    }
    changed_.NotifyAll();
  }

  void Wait(absl::Duration timeout, std::vector<ChunkDone>& done) override
      ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    while (timeout > absl::ZeroDuration() && !woken_ && !Ready()) {
      changed_.Wait(mu_);
    }
    woken_ = false;
    if (!Ready()) return;
    for (size_t i = 0; i < pending_.size();) {
      if (options_.hold && allowed_ == 0) break;
      const ChunkRead read = pending_[i];
      pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(i));
      if (options_.hold) --allowed_;
      done.push_back({read.tag, Land(read)});
    }
  }

  void Wake() override ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(mu_);
      woken_ = true;
    }
    changed_.NotifyAll();
  }

  absl::Status Finish(ExpertId id, std::span<const std::byte> landing,
                      std::span<std::byte> slot) override
      ABSL_LOCKS_EXCLUDED(mu_) {
    if (options_.staging) {
      std::memcpy(slot.data(), landing.data(), kFakeSlotBytes);
    }
    MutexLock lock(mu_);
    ++finished_[id];
    return absl::OkStatus();
  }

  // Lets the next `chunks` chunks come in, in the order of submission.
  void Complete(int chunks) ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(mu_);
      allowed_ += chunks;
    }
    changed_.NotifyAll();
  }

  // The next `times` chunks of the expert end with `status`.
  void Fail(ExpertId id, absl::Status status, int times = 1)
      ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    failures_[id] = {std::move(status), times};
  }

  // Blocks until `count` chunks have been submitted in all; returns them.
  std::vector<ChunkRead> AwaitSubmitted(size_t count) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    while (submitted_.size() < count) changed_.Wait(mu_);
    return submitted_;
  }

  int times_loaded(ExpertId id) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    return finished_[id];
  }

  // Of all experts.
  int64_t loads() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    int64_t loads = 0;
    for (const auto& [id, times] : finished_) loads += times;
    return loads;
  }

  // Chunks that were asked for while another load of the expert was under way.
  int double_reads() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    return double_reads_;
  }

  size_t num_submitted() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    return submitted_.size();
  }

 private:
  bool Ready() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return !pending_.empty() && (!options_.hold || allowed_ > 0);
  }

  absl::Status Land(const ChunkRead& read) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const size_t share =
        kFakeSlotBytes / static_cast<size_t>(options_.num_chunks);
    const auto failure = failures_.find(read.id);
    if (failure != failures_.end() && failure->second.second > 0) {
      // What a failed read leaves behind must never be computed with.
      std::memset(read.landing.data() + share * static_cast<size_t>(read.chunk),
                  0xEE, share);
      --failure->second.second;
      return failure->second.first;
    }
    std::memset(read.landing.data() + share * static_cast<size_t>(read.chunk),
                static_cast<int>(FakeByte(read.id)), share);
    return absl::OkStatus();
  }

  const Options options_;

  Mutex mu_;
  CondVar changed_;
  std::vector<ChunkRead> submitted_ ABSL_GUARDED_BY(mu_);  // all, in order
  std::vector<ChunkRead> pending_ ABSL_GUARDED_BY(mu_);
  std::map<ExpertId, std::pair<absl::Status, int>> failures_
      ABSL_GUARDED_BY(mu_);
  std::map<ExpertId, int> finished_ ABSL_GUARDED_BY(mu_);
  int allowed_ ABSL_GUARDED_BY(mu_) = 0;
  int double_reads_ ABSL_GUARDED_BY(mu_) = 0;
  bool woken_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace portolan
