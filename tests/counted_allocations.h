#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

// Counts what a test's program takes from the system while g_counting is set:
// operator new and mmap are replaced. Include it in one file of the program.

namespace {

std::atomic<bool> g_counting{false};
std::atomic<int64_t> g_allocations{0};

void Count() {
  if (g_counting.load(std::memory_order_relaxed)) {
    g_allocations.fetch_add(1, std::memory_order_relaxed);
  }
}

void* CountedAllocation(size_t size, size_t alignment) {
  Count();
  void* memory = alignment <= alignof(std::max_align_t)
                     ? std::malloc(size)
                     : std::aligned_alloc(alignment, (size + alignment - 1) /
                                                         alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(size_t size) { return CountedAllocation(size, 1); }
void* operator new(size_t size, std::align_val_t alignment) {
  return CountedAllocation(size, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t, std::align_val_t) noexcept {
  std::free(memory);
}

// In place of the library's: buffers, scratch and KV pages come from here.
extern "C" void* mmap(void* at, size_t length, int protection, int flags,
                      int file, off_t offset) noexcept {
  Count();
  return reinterpret_cast<void*>(
      syscall(SYS_mmap, at, length, protection, flags, file, offset));
}
