#include "experts/host_source.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr size_t kMostChunkBytes = 512 << 10;

}  // namespace

absl::StatusOr<std::unique_ptr<HostSource>> HostSource::Load(
    ChunkedSource& origin, std::span<const ExpertId> experts, size_t slot_bytes,
    Progress progress) {
  PORTOLAN_ASSIGN_OR_RETURN(
      AlignedBuffer records,
      AlignedBuffer::Allocate(experts.size() * slot_bytes));
  PORTOLAN_ASSIGN_OR_RETURN(const AlignedBuffer staging,
                            AlignedBuffer::Allocate(origin.staging_bytes()));
  std::unique_ptr<HostSource> source(
      new HostSource(std::move(records), slot_bytes));
  std::vector<ExpertId> order(experts.begin(), experts.end());
  std::ranges::sort(order, {},
                    [&](ExpertId id) { return origin.FileOrder(id); });
  for (size_t i = 0; i < order.size(); ++i) {
    PORTOLAN_RETURN_IF_ERROR(LoadExpert(
        origin, order[i], staging.bytes(),
        source->records_.bytes().subspan(i * slot_bytes, slot_bytes)));
    source->record_of_.emplace(order[i], i);
    progress(static_cast<int64_t>(i) + 1, static_cast<int64_t>(order.size()));
  }
  source->bytes_read_ = origin.bytes_read();
  return source;
}

HostSource::HostSource(AlignedBuffer records, size_t slot_bytes)
    : records_(std::move(records)),
      slot_bytes_(slot_bytes),
      chunk_bytes_(std::min(kMostChunkBytes, (slot_bytes + 2) / 3)) {}

size_t HostSource::Record(ExpertId id) const {
  const auto found = record_of_.find(id);
  PORTOLAN_CHECK(found != record_of_.end());
  return found->second * slot_bytes_;
}

int32_t HostSource::NumChunks(ExpertId /*id*/) const {
  return static_cast<int32_t>((slot_bytes_ + chunk_bytes_ - 1) / chunk_bytes_);
}

void HostSource::Submit(const ChunkRead& read) {
  const size_t begin = static_cast<size_t>(read.chunk) * chunk_bytes_;
  const size_t bytes = std::min(chunk_bytes_, slot_bytes_ - begin);
  std::memcpy(read.landing.data() + begin,
              records_.data() + Record(read.id) + begin, bytes);
  done_.push_back({read.tag, absl::OkStatus()});
}

void HostSource::Wait(absl::Duration timeout, std::vector<ChunkDone>& done) {
  if (done_.empty() && timeout > absl::ZeroDuration()) {
    MutexLock lock(mu_);
    if (timeout == absl::InfiniteDuration()) {
      while (!woken_) wake_up_.Wait(mu_);
    } else if (!woken_) {
      wake_up_.WaitFor(mu_, timeout);
    }
    woken_ = false;
  }
  std::ranges::move(done_, std::back_inserter(done));
  done_.clear();
}

void HostSource::Wake() {
  {
    MutexLock lock(mu_);
    woken_ = true;
  }
  wake_up_.NotifyAll();
}

}  // namespace portolan
