#include "comm/ring.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "runtime/base/check.h"

namespace portolan {
namespace {

// A futex that works between processes; std::atomic::wait() does not.
void FutexWait(std::atomic<uint32_t>& word, uint32_t seen,
               int64_t microseconds) {
  timespec timeout{.tv_sec = microseconds / 1'000'000,
                   .tv_nsec = (microseconds % 1'000'000) * 1000};
  syscall(SYS_futex, &word, FUTEX_WAIT, seen, &timeout, nullptr, 0);
}

void FutexWakeAll(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

}  // namespace

Ring::Ring(std::byte* memory, size_t capacity)
    : control_(reinterpret_cast<Control*>(memory)),
      data_(memory + sizeof(Control)),
      capacity_(capacity) {
  static_assert(std::atomic<uint64_t>::is_always_lock_free);
  PORTOLAN_CHECK((capacity & (capacity - 1)) == 0 && capacity > 0);
}

// The stores of `written` and `read` are sequentially consistent, as is
// Bell::Prepare(): either the other side sees the progress before it sleeps, or
// this side sees that it sleeps.
size_t Ring::Write(std::span<const std::byte> data) {
  const uint64_t written = control_->written.load(std::memory_order_relaxed);
  const uint64_t read = control_->read.load();
  const size_t size = std::min(data.size(), capacity_ - (written - read));
  if (size == 0) return 0;
  const size_t begin = written & (capacity_ - 1);
  const size_t first = std::min(size, capacity_ - begin);
  std::memcpy(data_ + begin, data.data(), first);
  if (size > first) std::memcpy(data_, data.data() + first, size - first);
  control_->written.store(written + size);
  return size;
}

size_t Ring::Read(std::span<std::byte> out) {
  const uint64_t read = control_->read.load(std::memory_order_relaxed);
  const uint64_t written = control_->written.load();
  const size_t size = std::min<size_t>(out.size(), written - read);
  if (size == 0) return 0;
  const size_t begin = read & (capacity_ - 1);
  const size_t first = std::min(size, capacity_ - begin);
  std::memcpy(out.data(), data_ + begin, first);
  if (size > first) std::memcpy(out.data() + first, data_, size - first);
  control_->read.store(read + size);
  return size;
}

bool Ring::HasData() const {
  return control_->written.load() !=
         control_->read.load(std::memory_order_relaxed);
}

bool Ring::HasRoom() const {
  return control_->written.load(std::memory_order_relaxed) -
             control_->read.load() <
         capacity_;
}

void Bell::Sleep(uint32_t seen, int64_t microseconds) {
  FutexWait(rings_, seen, microseconds);
  asleep_.store(0);
}

void Bell::RingAlways() {
  rings_.fetch_add(1);
  FutexWakeAll(rings_);
}

}  // namespace portolan
