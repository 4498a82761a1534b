#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"

namespace portolan {

// A file that takes the place of another at its end only, so that no half file
// ever bears the name. Until then it lies beside it as
// "NAME.tmp-PROCESS-NUMBER", a name that no other writer has, and vanishes with
// this object; what killed writers left behind is removed by the next one,
// which knows them by their missing lock. Thread-compatible.
class ReplacingFile {
 public:
  explicit ReplacingFile(std::string path);
  ~ReplacingFile();
  ReplacingFile(const ReplacingFile&) = delete;
  ReplacingFile& operator=(const ReplacingFile&) = delete;

  // Of all: kResourceExhausted (disk full), kUnavailable, naming the file.
  absl::Status Create();
  absl::Status Write(uint64_t offset, std::span<const std::byte> bytes);
  absl::Status Commit();

  // Hands pages up to `end` to the disk, so that a large file does not fill the
  // memory.
  void Flush(uint64_t end);

 private:
  absl::Status Error(int error) const;
  // 0, errno, or EAGAIN if another name has to be tried.
  int TryCreate();

  const std::string path_;
  std::string temporary_;
  int fd_ = -1;
  bool committed_ = false;
};

}  // namespace portolan
