#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace portolan {

// A stream of bytes from one writer to one reader through memory that both
// share: threads of one process, or processes with a shared mapping (at
// different addresses: it holds no pointers).
//
// Layout: Control, then `capacity` bytes of data. Zero-filled memory is an
// empty ring. Lock-free and safe against the death of either side.
class Ring {
 public:
  struct Control {
    alignas(64) std::atomic<uint64_t> written;  // by the writer only
    alignas(64) std::atomic<uint64_t> read;     // by the reader only
  };

  static size_t BytesFor(size_t capacity) { return sizeof(Control) + capacity; }

  Ring() = default;

  // `memory`: 64-byte aligned, BytesFor(capacity) bytes; capacity a power of 2.
  Ring(std::byte* memory, size_t capacity);

  // Writes as much of `data` as there is room for; returns how much. Writer.
  size_t Write(std::span<const std::byte> data);

  // Reads at most out.size() bytes; returns how many. Reader.
  size_t Read(std::span<std::byte> out);

  // Whether Read() would return something. Reader.
  bool HasData() const;

  // Whether Write() would take something. Writer.
  bool HasRoom() const;

 private:
  Control* control_ = nullptr;
  std::byte* data_ = nullptr;
  size_t capacity_ = 0;
};

// A rank's place to sleep until a peer rings, in memory shared like a Ring's.
// Zero-filled memory is a bell that nobody waits at.
class Bell {
 public:
  // Announces that the owner is going to sleep. The owner must look for work
  // once more after this, then either Sleep() or StayAwake().
  uint32_t Prepare() {
    asleep_.store(1);
    return rings_.load();
  }
  void StayAwake() { asleep_.store(0); }

  // Sleeps until a ring after Prepare() returned `seen`, or for at most
  // `microseconds`; then awake.
  void Sleep(uint32_t seen, int64_t microseconds);

  // Wakes the owner if it sleeps or is about to; cheap if it is awake.
  void RingIfAsleep() {
    if (asleep_.load() != 0) RingAlways();
  }
  void RingAlways();

 private:
  alignas(64) std::atomic<uint32_t> rings_;
  std::atomic<uint32_t> asleep_;
};

}  // namespace portolan
