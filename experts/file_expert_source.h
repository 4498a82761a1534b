#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "experts/chunked_source.h"
#include "experts/file_reader.h"
#include "experts/record_format.h"

namespace portolan {

// Experts out of files: `format` says what lies where, `reader` reads it past
// the page cache. A read that comes back short goes on behind what came; the
// end of the file before the last wanted byte is kDataLoss (the file was
// truncated), any other failure kUnavailable. Thread rules as ChunkedSource.
class FileExpertSource final : public ChunkedSource {
 public:
  // chunk_bytes: the longest piece, a multiple of 4 KiB. Large enough for the
  // device's full rate, small enough that demand does not wait long behind one.
  static constexpr uint64_t kDefaultChunkBytes = 512 << 10;

  FileExpertSource(std::unique_ptr<RecordFormat> format,
                   std::unique_ptr<FileReader> reader,
                   uint64_t chunk_bytes = kDefaultChunkBytes);

  std::string name() const override;
  size_t staging_bytes() const override { return format_->staging_bytes(); }
  int32_t NumChunks(ExpertId id) const override;
  int64_t LogicalBytes(ExpertId id) const override {
    return format_->LogicalBytes(id);
  }
  int64_t bytes_read() const override { return bytes_read_; }
  uint64_t FileOrder(ExpertId id) const override;
  int queue_depth() const override { return reader_->depth(); }
  int speculative_depth() const override {
    return std::max(1, reader_->depth() / 2);
  }
  void Submit(const ChunkRead& read) override;
  void Wait(absl::Duration timeout, std::vector<ChunkDone>& done) override;
  void Wake() override { reader_->Wake(); }
  absl::Status Finish(ExpertId id, std::span<const std::byte> landing,
                      std::span<std::byte> slot) override {
    return format_->Finish(id, landing, slot);
  }

 private:
  // A chunk under way. [begin, end) in the file, `got` bytes of it are there.
  struct Pending {
    bool used = false;
    uint64_t tag = 0;
    ExpertId id;
    int32_t file = 0;
    uint64_t begin = 0;
    uint64_t end = 0;
    uint64_t needed_end = 0;
    uint64_t got = 0;
    std::byte* to = nullptr;  // where `begin` lands
    int short_reads = 0;
    bool direct = false;  // read with O_DIRECT
  };

  int32_t ChunksOf(const FileSegment& segment) const;
  void Start(size_t index);
  // Takes note of a result; true if the chunk is done, with its status.
  bool Advance(size_t index, int64_t result, absl::Status* status);
  absl::Status Truncated(const Pending& pending) const;
  absl::Status Failed(const Pending& pending, int64_t error) const;
  std::string Where(const Pending& pending) const;

  std::unique_ptr<RecordFormat> format_;
  std::unique_ptr<FileReader> reader_;
  const uint64_t chunk_bytes_;
  std::vector<Pending> pending_;  // [queue_depth]
  std::vector<FileReadDone> reads_done_;
  std::atomic<int64_t> bytes_read_{0};
};

}  // namespace portolan
