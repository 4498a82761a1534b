#include "experts/replacing_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

constexpr std::string_view kInfix = ".tmp-";

// "PROCESS-NUMBER"
bool IsOurEnding(std::string_view text) {
  const size_t dash = text.find('-');
  return dash != std::string_view::npos && dash > 0 && dash + 1 < text.size() &&
         std::ranges::all_of(text, [](char c) {
           return c == '-' || std::isdigit(static_cast<unsigned char>(c)) != 0;
         });
}

// A living writer holds a lock on its file, of whatever host it is.
void RemoveIfAbandoned(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return;
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) unlink(path.c_str());
  close(fd);
}

void RemoveAbandoned(const std::string& path) {
  const std::filesystem::path target(path);
  const std::string prefix = target.filename().string() + std::string(kInfix);
  const std::filesystem::path directory =
      target.has_parent_path() ? target.parent_path() : ".";
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end;
       !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with(prefix) &&
        IsOurEnding(std::string_view(name).substr(prefix.size()))) {
      RemoveIfAbandoned(entry->path().string());
    }
  }
}

// Whether the name still leads to the open file.
bool HasName(int fd) {
  struct stat info {};
  return fstat(fd, &info) == 0 && info.st_nlink > 0;
}

}  // namespace

ReplacingFile::ReplacingFile(std::string path) : path_(std::move(path)) {}

ReplacingFile::~ReplacingFile() {
  if (fd_ < 0) return;
  if (!committed_) unlink(temporary_.c_str());
  close(fd_);
}

absl::Status ReplacingFile::Error(int error) const {
  const std::string message =
      absl::StrCat("cannot write ", temporary_, ": ", std::strerror(error));
  if (error == ENOSPC || error == EDQUOT) {
    return absl::ResourceExhaustedError(message);
  }
  return absl::UnavailableError(message);
}

int ReplacingFile::TryCreate() {
  fd_ = open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd_ < 0) return errno == EEXIST ? EAGAIN : errno;
  // Where the file system has no locks, nobody removes anything. Somebody who
  // found the file before it was locked may just be removing it.
  const bool taken = flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  if (!taken && HasName(fd_)) return 0;
  close(std::exchange(fd_, -1));
  return EAGAIN;
}

absl::Status ReplacingFile::Create() {
  PORTOLAN_CHECK(fd_ < 0 && !committed_);
  RemoveAbandoned(path_);
  constexpr int kTries = 1000;
  int error = EAGAIN;
  for (int number = 0; number < kTries && error == EAGAIN; ++number) {
    temporary_ = absl::StrCat(path_, ".tmp-", getpid(), "-", number);
    error = TryCreate();
  }
  return error == 0 ? absl::OkStatus() : Error(error);
}

absl::Status ReplacingFile::Write(uint64_t offset,
                                  std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written =
        pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Error(errno);
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
  return absl::OkStatus();
}

void ReplacingFile::Flush(uint64_t end) {
  sync_file_range(fd_, 0, static_cast<off_t>(end), SYNC_FILE_RANGE_WRITE);
  posix_fadvise(fd_, 0, static_cast<off_t>(end), POSIX_FADV_DONTNEED);
}

absl::Status ReplacingFile::Commit() {
  if (fsync(fd_) != 0) return Error(errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) return Error(errno);
  committed_ = true;
  return absl::OkStatus();
}

}  // namespace portolan
