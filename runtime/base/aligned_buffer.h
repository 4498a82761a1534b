#pragma once

#include <cstddef>
#include <span>

#include "absl/status/statusor.h"

namespace portolan {

// Zero-filled memory of its own, aligned to 4 KiB (O_DIRECT, cache lines) and
// in huge pages where the kernel gives them to buffers of 2 MiB and more.
//
// Movable; thread-compatible.
class AlignedBuffer {
 public:
  // Errors: kResourceExhausted if the system has not that much memory.
  static absl::StatusOr<AlignedBuffer> Allocate(size_t bytes);

  AlignedBuffer() = default;
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  ~AlignedBuffer();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  std::span<std::byte> bytes() const { return {data_, size_}; }

  // The buffer as elements of T; size() must be a multiple of sizeof(T).
  template <typename T>
  std::span<T> As() const {
    return {reinterpret_cast<T*>(data_), size_ / sizeof(T)};
  }

 private:
  AlignedBuffer(std::byte* data, size_t size) : data_(data), size_(size) {}

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace portolan
