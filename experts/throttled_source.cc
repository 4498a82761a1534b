#include "experts/throttled_source.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace portolan {

ThrottledSource::ThrottledSource(std::unique_ptr<ChunkedSource> source,
                                 const LinkSpec& link, int64_t load_bytes,
                                 Clock clock, absl::Duration spin)
    : source_(std::move(source)),
      spec_(link),
      load_bytes_(load_bytes),
      clock_(std::move(clock)),
      spin_(spin),
      link_(link) {
  pending_.reserve(static_cast<size_t>(source_->queue_depth()));
}

std::string ThrottledSource::name() const {
  return absl::StrCat(source_->name(), " at ", ToString(spec_));
}

void ThrottledSource::Submit(const ChunkRead& read) {
  // Shares of whole bytes that add up to load_bytes_.
  const int64_t num_chunks = source_->NumChunks(read.id);
  const int64_t bytes = load_bytes_ * (read.chunk + 1) / num_chunks -
                        load_bytes_ * read.chunk / num_chunks;
  const uint64_t number = num_submitted_++;
  link_.Submit(number, bytes, /*first_of_load=*/read.chunk == 0,
               read.read_class, Requested(read));
  pending_.push_back(
      {.number = number, .tag = read.tag, .status = absl::OkStatus()});
  ChunkRead inner = read;
  inner.tag = number;
  source_->Submit(inner);
}

void ThrottledSource::Wait(absl::Duration timeout,
                           std::vector<ChunkDone>& done) {
  if (TakeDone(done)) return;
  source_done_.clear();
  const absl::Duration rest = link_.NextArrival() - clock_();
  source_->Wait(std::min(timeout, std::max(rest - spin_, absl::ZeroDuration())),
                source_done_);
  for (ChunkDone& chunk : source_done_) {
    Pending& pending = Find(chunk.tag);
    pending.read = true;
    pending.status = std::move(chunk.status);
  }
  TakeDone(done);
}

// The moment of the request, in the order that LinkModel asks for.
absl::Time ThrottledSource::Requested(const ChunkRead& read) {
  const absl::Time now = clock_();
  last_request_ = std::clamp(read.requested, std::min(last_request_, now), now);
  return last_request_;
}

bool ThrottledSource::TakeDone(std::vector<ChunkDone>& done) {
  const absl::Time now = clock_();
  while (const std::optional<uint64_t> number = link_.PopArrived(now)) {
    Find(*number).arrived = true;
  }
  bool any = false;
  std::erase_if(pending_, [&](Pending& pending) {
    if (!pending.arrived || !pending.read) return false;
    done.push_back({pending.tag, std::move(pending.status)});
    any = true;
    return true;
  });
  return any;
}

ThrottledSource::Pending& ThrottledSource::Find(uint64_t number) {
  const auto found = std::ranges::find(pending_, number, &Pending::number);
  PORTOLAN_CHECK(found != pending_.end());
  return *found;
}

}  // namespace portolan
