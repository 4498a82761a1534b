#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace portolan {

// A coordinator's directory, locked as long as this lives.
class DataDir {
 public:
  // Makes the directory if it is not there.
  // Errors: kFailedPrecondition naming the process that has it;
  // kPermissionDenied, kInvalidArgument (not a directory).
  static absl::StatusOr<DataDir> Lock(const std::string& path);
  ~DataDir();
  DataDir(DataDir&& other) noexcept;
  DataDir& operator=(DataDir&&) = delete;

  std::string File(const std::string& name) const { return path_ + "/" + name; }
  // Replaces a file as a whole: a reader sees the old or the new text.
  absl::Status WriteFile(const std::string& name,
                         const std::string& text) const;

 private:
  DataDir(std::string path, int lock_fd)
      : path_(std::move(path)), lock_fd_(lock_fd) {}

  std::string path_;
  int lock_fd_;
};

}  // namespace portolan
