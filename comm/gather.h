#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "comm/transport.h"
#include "runtime/base/aligned_buffer.h"

namespace portolan {

// Memory for the messages of one exchange: once AbandonUnless() was told of an
// error, it stays until the process ends.
class MessageMemory {
 public:
  // Errors: kResourceExhausted.
  static absl::StatusOr<MessageMemory> Allocate(size_t bytes);

  std::span<std::byte> bytes() const { return buffer_.bytes(); }
  template <typename T>
  std::span<T> As() const {
    return buffer_.As<T>();
  }

  // Returns `outcome` of the exchange.
  absl::Status AbandonUnless(absl::Status outcome);

 private:
  explicit MessageMemory(AlignedBuffer buffer) : buffer_(std::move(buffer)) {}

  AlignedBuffer buffer_;
};

// What every rank has, of one size, to all ranks: that of rank r begins at
// r * mine.size(). Collective.
// Errors: as Transport::AllToAllV(); kResourceExhausted.
absl::StatusOr<MessageMemory> AllGather(Transport& transport,
                                        std::span<const std::byte> mine,
                                        const WaitContext& context);

// Before all ranks leave with an error that they found together: returns when
// every rank has come here. One that left at once could seem lost to another
// that still reads what it sent. What goes wrong here changes nothing any more.
// Collective.
void LeaveTogether(Transport& transport, const WaitContext& context);

}  // namespace portolan
