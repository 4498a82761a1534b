#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace portolan {

// One positioned read. For a file opened with O_DIRECT, offset, size and
// address are multiples of 4096.
struct FileRead {
  int fd = -1;
  uint64_t offset = 0;
  std::span<std::byte> to;
  uint64_t tag = 0;  // returned with the completion
};

struct FileReadDone {
  uint64_t tag = 0;
  int64_t result = 0;  // bytes read, 0 at the end of the file, or -errno
};

// Reads ranges of files asynchronously: io_uring, or a few threads in pread()
// where io_uring is refused.
//
// Submit() and Wait() on one thread only, Wake() on any. Memory of a read must
// live until it is done; the destructor waits for reads under way.
class FileReader {
 public:
  virtual ~FileReader() = default;

  virtual std::string_view name() const = 0;

  // How many reads may be under way.
  virtual int depth() const = 0;

  // Starts a read. Requires fewer than depth() under way.
  virtual void Submit(const FileRead& read) = 0;

  // Blocks until a read is done, Wake() was called or `timeout` has passed,
  // then appends what is done to `done`. A result may be short.
  virtual void Wait(absl::Duration timeout,
                    std::vector<FileReadDone>& done) = 0;

  // Ends the present or else the next Wait().
  virtual void Wake() = 0;
};

enum class FileReaderKind {
  kAuto,  // io_uring if the kernel lets us, else pread
  kUring,
  kPread,
};

// Errors: kUnimplemented if io_uring is demanded and the kernel refuses it.
absl::StatusOr<std::unique_ptr<FileReader>> MakeFileReader(FileReaderKind kind,
                                                           int depth);

}  // namespace portolan
