#include "experts/file_reader.h"

#include <utility>

#include "experts/pread_reader.h"
#include "experts/uring_reader.h"
#include "runtime/base/check.h"

namespace portolan {

absl::StatusOr<std::unique_ptr<FileReader>> MakeFileReader(FileReaderKind kind,
                                                           int depth) {
  PORTOLAN_CHECK(depth > 0);
  if (kind != FileReaderKind::kPread) {
    absl::StatusOr<std::unique_ptr<FileReader>> uring =
        UringReader::Create(depth);
    if (uring.ok() || kind == FileReaderKind::kUring) return uring;
  }
  return std::make_unique<PreadReader>(depth);
}

}  // namespace portolan
