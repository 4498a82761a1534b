#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace portolan {

// A regular file open for reading. Read by pread, never mapped: a file that
// shrinks under us is an error here, not a SIGBUS.
//
// Movable; Read() is thread-safe.
class RandomAccessFile {
 public:
  // Errors: kNotFound, kPermissionDenied, kInvalidArgument (no regular file),
  // kUnavailable; all name the path.
  static absl::StatusOr<RandomAccessFile> Open(const std::string& path);

  RandomAccessFile(RandomAccessFile&& other) noexcept;
  RandomAccessFile& operator=(RandomAccessFile&& other) noexcept;
  ~RandomAccessFile();

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  // when it was opened

  // Fills `out` from `offset` on.
  // Errors: kDataLoss (the file ends before), kUnavailable (read error, may be
  // tried again); both name path and offset.
  absl::Status Read(uint64_t offset, std::span<std::byte> out) const;

 private:
  RandomAccessFile(std::string path, int fd, uint64_t size)
      : path_(std::move(path)), fd_(fd), size_(size) {}

  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

}  // namespace portolan
