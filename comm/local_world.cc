#include "comm/local_world.h"

#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "comm/ring_transport.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/check.h"
#include "runtime/base/mutex.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/thread_pool.h"

namespace portolan {
namespace {

// Ranks that ended with an error.
class FailedRanks final : public PeerWatch {
 public:
  void Add(Rank rank, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    if (first_) return;
    first_ = LostPeer{rank, absl::StrCat("it failed: ", status.message()),
                      status.code()};
    any_.store(true);
  }

  std::optional<LostPeer> lost() const override ABSL_LOCKS_EXCLUDED(mu_) {
    if (!any_.load()) return std::nullopt;
    MutexLock lock(mu_);
    return first_;
  }

 private:
  mutable Mutex mu_;
  std::optional<LostPeer> first_ ABSL_GUARDED_BY(mu_);
  std::atomic<bool> any_{false};
};

std::string HostName() {
  char name[256] = "";
  gethostname(name, sizeof(name) - 1);
  return name;
}

absl::Status FirstCause(std::vector<absl::Status>& results) {
  absl::Status aborted;
  for (absl::Status& result : results) {
    if (absl::IsAborted(result)) {
      if (aborted.ok()) aborted = std::move(result);
    } else if (!result.ok()) {
      return std::move(result);
    }
  }
  return aborted;
}

}  // namespace

absl::Status RunLocalWorld(int world_size,
                           absl::FunctionRef<absl::Status(Transport&)> body,
                           const LocalWorldOptions& options) {
  PORTOLAN_CHECK(world_size >= 1);
  const auto world = static_cast<size_t>(world_size);
  const size_t ring_bytes =
      RingTransport::RingBytesFor(world_size, options.total_ring_bytes);
  std::vector<AlignedBuffer> memory(world);
  std::vector<std::byte*> inboxes(world);
  for (size_t rank = 0; rank < world; ++rank) {
    PORTOLAN_ASSIGN_OR_RETURN(
        memory[rank], AlignedBuffer::Allocate(
                          RingTransport::InboxBytes(world_size, ring_bytes)));
    inboxes[rank] = memory[rank].data();
  }
  const RingTransport::Options ring_options{
      .name = "local",
      .hosts = std::vector<std::string>(world, HostName()),
      .ring_bytes = ring_bytes};

  FailedRanks failed;
  std::vector<absl::Status> results(world);
  std::vector<std::jthread> ranks;
  ranks.reserve(world);
  for (size_t i = 0; i < world; ++i) {
    ranks.emplace_back([&, i] {
      FlushDenormals();
      const Rank rank{static_cast<int32_t>(i)};
      RingTransport transport(rank, inboxes, failed, ring_options);
      results[i] = body(transport);
      if (!results[i].ok()) failed.Add(rank, results[i]);
    });
  }
  ranks.clear();  // joins
  return FirstCause(results);
}

}  // namespace portolan
