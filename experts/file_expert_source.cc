#include "experts/file_expert_source.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

// A device that makes no headway so often in one chunk is broken.
constexpr int kMaxShortReads = 8;

}  // namespace

FileExpertSource::FileExpertSource(std::unique_ptr<RecordFormat> format,
                                   std::unique_ptr<FileReader> reader,
                                   uint64_t chunk_bytes)
    : format_(std::move(format)),
      reader_(std::move(reader)),
      chunk_bytes_(chunk_bytes),
      pending_(static_cast<size_t>(reader_->depth())) {
  PORTOLAN_CHECK(chunk_bytes > 0 && chunk_bytes % kDirectAlignment == 0);
  reads_done_.reserve(pending_.size());
}

std::string FileExpertSource::name() const {
  const bool direct =
      std::ranges::all_of(format_->files(), [](const DirectFile& file) {
        return file.mode() == DirectFile::Mode::kDirect;
      });
  const std::string_view reader = reader_->name();
  return absl::StrCat(format_->name(), " (",
                      absl::string_view(reader.data(), reader.size()), ", ",
                      direct ? "direct" : "buffered", ")");
}

int32_t FileExpertSource::ChunksOf(const FileSegment& segment) const {
  return static_cast<int32_t>((segment.bytes + chunk_bytes_ - 1) /
                              chunk_bytes_);
}

int32_t FileExpertSource::NumChunks(ExpertId id) const {
  int32_t num_chunks = 0;
  for (const FileSegment& segment : format_->Segments(id)) {
    num_chunks += ChunksOf(segment);
  }
  return num_chunks;
}

uint64_t FileExpertSource::FileOrder(ExpertId id) const {
  const FileSegment& first = format_->Segments(id).front();
  return (static_cast<uint64_t>(first.file) << 48) | first.offset;
}

void FileExpertSource::Submit(const ChunkRead& read) {
  const auto free = std::ranges::find(pending_, false, &Pending::used);
  PORTOLAN_CHECK(free != pending_.end());
  int32_t chunk = read.chunk;
  for (const FileSegment& segment : format_->Segments(read.id)) {
    const int32_t num_chunks = ChunksOf(segment);
    if (chunk >= num_chunks) {
      chunk -= num_chunks;
      continue;
    }
    const uint64_t skip = static_cast<uint64_t>(chunk) * chunk_bytes_;
    const uint64_t begin = segment.offset + skip;
    const uint64_t end =
        std::min(begin + chunk_bytes_, segment.offset + segment.bytes);
    PORTOLAN_CHECK(segment.landing_offset + (end - segment.offset) <=
                   read.landing.size());
    *free = {.used = true,
             .tag = read.tag,
             .id = read.id,
             .file = segment.file,
             .begin = begin,
             .end = end,
             .needed_end = std::min(end, segment.needed_end),
             .got = 0,
             .to = read.landing.data() + segment.landing_offset + skip,
             .short_reads = 0,
             .direct = false};
    Start(static_cast<size_t>(free - pending_.begin()));
    return;
  }
  PORTOLAN_CHECK(false);  // no such chunk
}

void FileExpertSource::Start(size_t index) {
  Pending& pending = pending_[index];
  const DirectFile& file = format_->files()[pending.file];
  pending.direct = file.mode() == DirectFile::Mode::kDirect;
  // After a short read the rest starts at a multiple of the alignment again.
  const uint64_t skip = AlignDown(pending.got);
  reader_->Submit(
      {.fd = file.fd(),
       .offset = pending.begin + skip,
       .to = {pending.to + skip, pending.end - pending.begin - skip},
       .tag = index});
}

void FileExpertSource::Wait(absl::Duration timeout,
                            std::vector<ChunkDone>& done) {
  reads_done_.clear();
  reader_->Wait(timeout, reads_done_);
  for (const FileReadDone& read : reads_done_) {
    absl::Status status;
    if (!Advance(read.tag, read.result, &status)) {
      Start(read.tag);
      continue;
    }
    done.push_back({pending_[read.tag].tag, std::move(status)});
    pending_[read.tag].used = false;
  }
}

bool FileExpertSource::Advance(size_t index, int64_t result,
                               absl::Status* status) {
  Pending& pending = pending_[index];
  const DirectFile& file = format_->files()[pending.file];
  if (result == -EINVAL && pending.direct) {
    if (file.mode() == DirectFile::Mode::kDirect) file.LeaveDirect();
    if (file.mode() == DirectFile::Mode::kBuffered) return false;
  }
  if (result < 0) {
    *status = Failed(pending, -result);
    return true;
  }
  bytes_read_.fetch_add(result, std::memory_order_relaxed);
  const uint64_t got = AlignDown(pending.got) + static_cast<uint64_t>(result);
  if (file.mode() == DirectFile::Mode::kBuffered && result > 0) {
    file.DropPages(pending.begin, got);
  }
  const bool headway = got > pending.got;
  pending.got = std::max(pending.got, got);
  if (pending.begin + pending.got >= pending.needed_end) return true;
  const int64_t size = file.Size();
  if (size >= 0 && static_cast<uint64_t>(size) < pending.needed_end) {
    *status = Truncated(pending);
    return true;
  }
  if (!headway || ++pending.short_reads > kMaxShortReads) {
    *status = absl::UnavailableError(
        absl::StrCat(Where(pending), ": the device returned ", pending.got,
                     " of ", pending.needed_end - pending.begin, " bytes"));
    return true;
  }
  return false;
}

absl::Status FileExpertSource::Truncated(const Pending& pending) const {
  return absl::DataLossError(
      absl::StrCat(Where(pending), ": the file ends at byte ",
                   format_->files()[pending.file].Size(),
                   "; it was truncated, restore it from its origin"));
}

absl::Status FileExpertSource::Failed(const Pending& pending,
                                      int64_t error) const {
  return absl::UnavailableError(absl::StrCat(
      Where(pending), ": ", std::strerror(static_cast<int>(error))));
}

std::string FileExpertSource::Where(const Pending& pending) const {
  return absl::StrCat("reading expert ", ToString(pending.id), " from ",
                      format_->files()[pending.file].path(), ", bytes ",
                      pending.begin, "..", pending.needed_end);
}

}  // namespace portolan
