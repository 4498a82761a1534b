#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "experts/direct_file.h"
#include "runtime/base/ids.h"

namespace portolan {

// A range of a file that a load reads, widened to O_DIRECT's alignment. It
// lands at landing_offset of the load's landing buffer.
struct FileSegment {
  int32_t file = 0;             // index into RecordFormat::files()
  uint64_t offset = 0;          // aligned
  uint64_t bytes = 0;           // aligned; may reach beyond the end of the file
  uint64_t landing_offset = 0;  // aligned
  uint64_t needed_end = 0;      // file offset up to which bytes are wanted
};

// What lies where in files, and what makes a kernel-ready slot of it. Real
// ones: the checkpoint (CheckpointFormat) and the expert pack (PackFormat).
//
// Constant after construction, but Finish() on one thread only.
class RecordFormat {
 public:
  virtual ~RecordFormat() = default;

  virtual std::string name() const = 0;
  virtual std::span<const DirectFile> files() const = 0;

  // As ChunkedSource::staging_bytes().
  virtual size_t staging_bytes() const = 0;

  // The segments of a load. Requires an expert that the format holds.
  virtual std::span<const FileSegment> Segments(ExpertId id) const = 0;

  // Bytes wanted, without alignment.
  virtual int64_t LogicalBytes(ExpertId id) const = 0;

  // As ChunkedSource::Finish().
  virtual absl::Status Finish(ExpertId id, std::span<const std::byte> landing,
                              std::span<std::byte> slot) = 0;
};

}  // namespace portolan
