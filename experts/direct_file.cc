#include "experts/direct_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace portolan {
namespace {

absl::Status OpenError(const std::string& path, int error) {
  const std::string message =
      absl::StrCat("cannot open ", path, ": ", std::strerror(error));
  if (error == ENOENT) return absl::NotFoundError(message);
  if (error == EACCES) return absl::PermissionDeniedError(message);
  return absl::UnavailableError(message);
}

}  // namespace

absl::StatusOr<DirectFile> DirectFile::Open(const std::string& path,
                                            Mode prefer) {
  if (prefer == Mode::kDirect) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (fd >= 0) return DirectFile(fd, path, Mode::kDirect);
    if (errno != EINVAL) return OpenError(path, errno);
  }
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return OpenError(path, errno);
  // No read-ahead: DropPages() would not know of its pages.
  static_cast<void>(posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM));
  return DirectFile(fd, path, Mode::kBuffered);
}

DirectFile::DirectFile(DirectFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      mode_(other.mode()) {}

DirectFile& DirectFile::operator=(DirectFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  const Mode mode = mode_;
  mode_ = other.mode();
  other.mode_ = mode;
  return *this;
}

DirectFile::~DirectFile() {
  if (fd_ >= 0) close(fd_);
}

void DirectFile::LeaveDirect() const {
  const int flags = fcntl(fd_, F_GETFL);
  if (flags < 0 || fcntl(fd_, F_SETFL, flags & ~O_DIRECT) != 0) return;
  static_cast<void>(posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM));
  mode_ = Mode::kBuffered;
}

int64_t DirectFile::Size() const {
  struct stat info {};
  return fstat(fd_, &info) == 0 ? info.st_size : -1;
}

void DirectFile::DropPages(uint64_t offset, uint64_t bytes) const {
  // A hint: that it is refused changes nothing for us.
  static_cast<void>(posix_fadvise(fd_, static_cast<off_t>(offset),
                                  static_cast<off_t>(bytes),
                                  POSIX_FADV_DONTNEED));
}

}  // namespace portolan
