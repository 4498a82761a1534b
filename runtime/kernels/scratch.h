#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/check.h"

namespace portolan {

// Memory that a thread works in: grows to the largest request and stays.
// Thread-compatible.
class Scratch {
 public:
  // At least `count` elements of T, 4 KiB aligned; contents are undefined and
  // the last pointer is invalid if it grew.
  template <typename T>
  T* Get(int64_t count) {
    const auto bytes = static_cast<size_t>(count) * sizeof(T);
    if (bytes > buffer_.size()) Grow(bytes);
    return reinterpret_cast<T*>(buffer_.data());
  }

  // So that requests up to `bytes` do not grow it. Memory that is never written
  // takes address space only.
  // Errors: kResourceExhausted.
  absl::Status Reserve(int64_t bytes) {
    if (static_cast<size_t>(bytes) <= buffer_.size()) return absl::OkStatus();
    auto reserved = AlignedBuffer::Allocate(static_cast<size_t>(bytes));
    if (!reserved.ok()) return reserved.status();
    buffer_ = *std::move(reserved);
    return absl::OkStatus();
  }

 private:
  void Grow(size_t bytes) {
    PORTOLAN_CHECK(Reserve(static_cast<int64_t>(bytes + bytes / 4)).ok());
  }

  AlignedBuffer buffer_;
};

}  // namespace portolan
