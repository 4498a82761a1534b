#include "cluster/coordinator/server/data_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace portolan {
namespace {

std::string Owner(int fd) {
  char text[64] = {};
  const ssize_t size = pread(fd, text, sizeof(text) - 1, 0);
  if (size <= 0) return "another process";
  return absl::StrCat("process ", std::string(text, static_cast<size_t>(size)));
}

absl::Status WriteAll(int fd, const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = write(fd, text.data() + done, text.size() - done);
    if (n < 0) return absl::ErrnoToStatus(errno, "cannot write");
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DataDir> DataDir::Lock(const std::string& path) {
  if (path.empty()) {
    return absl::InvalidArgumentError("--data-dir is missing");
  }
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!std::filesystem::is_directory(path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--data-dir ", path, " is no directory and cannot be made",
                     error ? ": " + error.message() : ""));
  }
  // Prompts and outputs are nobody else's business.
  if (chmod(path.c_str(), 0700) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot keep others out of --data-dir ", path,
                     " (chmod 0700): ", std::strerror(errno)));
  }
  const std::string file = path + "/lock";
  const int fd = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot open ", file, ": ", std::strerror(errno)));
  }
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const std::string owner = Owner(fd);
    close(fd);
    return absl::FailedPreconditionError(
        absl::StrCat("--data-dir ", path, " is in use by the coordinator of ",
                     owner, "; stop it or use another directory"));
  }
  DataDir dir(path, fd);
  const std::string pid = absl::StrCat(getpid());
  if (ftruncate(fd, 0) != 0 || pwrite(fd, pid.data(), pid.size(), 0) < 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot write ", file, ": ", std::strerror(errno)));
  }
  return dir;
}

DataDir::~DataDir() {
  if (lock_fd_ >= 0) close(lock_fd_);
}

DataDir::DataDir(DataDir&& other) noexcept
    : path_(std::move(other.path_)),
      lock_fd_(std::exchange(other.lock_fd_, -1)) {}

absl::Status DataDir::WriteFile(const std::string& name,
                                const std::string& text) const {
  const std::string target = File(name);
  const std::string draft = target + ".new";
  const int fd =
      open(draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", draft));
  }
  absl::Status status = WriteAll(fd, text);
  close(fd);
  if (status.ok() && std::rename(draft.c_str(), target.c_str()) != 0) {
    status = absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", target));
  }
  return status;
}

}  // namespace portolan
