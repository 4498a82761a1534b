#include "runtime/base/aligned_buffer.h"

#include <sys/mman.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/units.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PORTOLAN_ASAN
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define PORTOLAN_ASAN
#endif
#ifdef PORTOLAN_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace portolan {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;

size_t RoundUp(size_t value, size_t to) { return (value + to - 1) / to * to; }

// Under AddressSanitizer, which knows nothing of mapped memory, what lies
// behind a buffer is out of bounds, a page at least.
#ifdef PORTOLAN_ASAN
size_t MappedBytes(size_t bytes) { return RoundUp(bytes, kPage) + kPage; }

void Guard(std::byte* data, size_t bytes) {
  ASAN_POISON_MEMORY_REGION(data + bytes, MappedBytes(bytes) - bytes);
}

void Unguard(std::byte* data, size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(data, MappedBytes(bytes));
}
#else
size_t MappedBytes(size_t bytes) { return RoundUp(bytes, kPage); }
void Guard(std::byte* /*data*/, size_t /*bytes*/) {}
void Unguard(std::byte* /*data*/, size_t /*bytes*/) {}
#endif

}  // namespace

absl::StatusOr<AlignedBuffer> AlignedBuffer::Allocate(size_t bytes) {
  if (bytes == 0) return AlignedBuffer();
  void* data = mmap(nullptr, MappedBytes(bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the system has no ", FormatBytes(bytes),
                     " of memory left; lower --expert-memory or --batch"));
  }
  // Only a hint: without huge pages everything works, somewhat slower.
  if (bytes >= kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
  Guard(static_cast<std::byte*>(data), bytes);
  return AlignedBuffer(static_cast<std::byte*>(data), bytes);
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ == nullptr) return;
  Unguard(data_, size_);
  munmap(data_, MappedBytes(size_));
}

}  // namespace portolan
