#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace portolan {

// What O_DIRECT asks of offsets, sizes and addresses: a multiple of this suits
// every device we know of.
inline constexpr size_t kDirectAlignment = 4096;

constexpr uint64_t AlignDown(uint64_t value) {
  return value / kDirectAlignment * kDirectAlignment;
}
constexpr uint64_t AlignUp(uint64_t value) {
  return AlignDown(value + kDirectAlignment - 1);
}

// A file opened for reading past the page cache. Where the file system refuses
// O_DIRECT, at the opening or later, pages are dropped after each read instead.
// Movable; thread-safe.
class DirectFile {
 public:
  enum class Mode { kDirect, kBuffered };

  // `prefer` kBuffered leaves O_DIRECT alone (tests).
  // Errors: kNotFound, kPermissionDenied, kUnavailable naming the file.
  static absl::StatusOr<DirectFile> Open(const std::string& path,
                                         Mode prefer = Mode::kDirect);

  DirectFile(DirectFile&& other) noexcept;
  DirectFile& operator=(DirectFile&& other) noexcept;
  ~DirectFile();

  int fd() const { return fd_; }
  const std::string& path() const { return path_; }
  Mode mode() const { return mode_.load(std::memory_order_relaxed); }

  // Reads through the page cache from now on: for a file system that lets a
  // file be opened with O_DIRECT and then refuses to read it so (EINVAL).
  void LeaveDirect() const;

  // Bytes in the file now, -1 if the system does not say.
  int64_t Size() const;

  // Tells the kernel that these bytes will not be read again soon.
  void DropPages(uint64_t offset, uint64_t bytes) const;

 private:
  DirectFile(int fd, std::string path, Mode mode)
      : fd_(fd), path_(std::move(path)), mode_(mode) {}

  int fd_ = -1;
  std::string path_;
  mutable std::atomic<Mode> mode_ = Mode::kDirect;
};

}  // namespace portolan
