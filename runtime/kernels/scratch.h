#pragma once

#include <cstddef>
#include <cstdint>

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

 private:
  void Grow(size_t bytes) {
    auto grown = AlignedBuffer::Allocate(bytes + bytes / 4);
    PORTOLAN_CHECK(grown.ok());
    buffer_ = *std::move(grown);
  }

  AlignedBuffer buffer_;
};

}  // namespace portolan
