#include "experts/uring_reader.h"

#include <liburing.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "experts/pread_reader.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

// Not ~0, which is liburing's own.
constexpr uint64_t kWakeTag = ~uint64_t{1};

__kernel_timespec ToKernel(absl::Duration timeout) {
  const timespec time = absl::ToTimespec(timeout);
  return {.tv_sec = time.tv_sec, .tv_nsec = time.tv_nsec};
}

}  // namespace

struct UringReader::Ring {
  ~Ring() {
    if (ready) io_uring_queue_exit(&ring);
    if (event >= 0) close(event);
  }

  io_uring ring{};
  bool ready = false;
  int event = -1;
  uint64_t event_value = 0;  // the kernel writes here
};

absl::StatusOr<std::unique_ptr<FileReader>> UringReader::Create(int depth) {
  auto ring = std::make_unique<Ring>();
  // One entry more for the event, one for a timeout on old kernels.
  const int error = io_uring_queue_init(static_cast<unsigned>(depth) + 2,
                                        &ring->ring, /*flags=*/0);
  if (error < 0) {
    return absl::UnimplementedError(
        absl::StrCat("this system refuses io_uring: ", std::strerror(-error)));
  }
  ring->ready = true;
  ring->event = eventfd(0, EFD_CLOEXEC);
  if (ring->event < 0) {
    return absl::UnimplementedError(
        absl::StrCat("no eventfd for io_uring: ", std::strerror(errno)));
  }
  std::unique_ptr<UringReader> reader(new UringReader(depth, std::move(ring)));
  if (!reader->ArmWake()) {
    return absl::UnimplementedError("this system refuses io_uring's reads");
  }
  return reader;
}

UringReader::UringReader(int depth, std::unique_ptr<Ring> ring)
    : depth_(depth), ring_(std::move(ring)) {}

UringReader::~UringReader() {
  // The kernel writes to memory that the caller frees after us.
  std::vector<FileReadDone> done;
  while (under_way_ > 0) Wait(absl::InfiniteDuration(), done);
}

void UringReader::Submit(const FileRead& read) {
  if (rest_ != nullptr) return rest_->Submit(read);
  PORTOLAN_CHECK(under_way_ < depth_);
  io_uring_sqe* entry = io_uring_get_sqe(&ring_->ring);
  PORTOLAN_CHECK(entry != nullptr);
  io_uring_prep_read(entry, read.fd, read.to.data(),
                     static_cast<unsigned>(read.to.size()), read.offset);
  io_uring_sqe_set_data64(entry, read.tag);
  if (SubmitAll()) {
    ++under_way_;
    return;
  }
  // Nobody shall read it later.
  io_uring_prep_nop(entry);
  LeaveRing();
  rest_->Submit(read);
}

bool UringReader::ArmWake() {
  io_uring_sqe* entry = io_uring_get_sqe(&ring_->ring);
  PORTOLAN_CHECK(entry != nullptr);
  io_uring_prep_read(entry, ring_->event, &ring_->event_value,
                     sizeof(ring_->event_value), 0);
  io_uring_sqe_set_data64(entry, kWakeTag);
  return SubmitAll();
}

bool UringReader::SubmitAll() {
  // EAGAIN and EBUSY (short of kernel memory) pass; entries stay queued.
  while (io_uring_sq_ready(&ring_->ring) > 0) {
    const int result = io_uring_submit(&ring_->ring);
    refused_ =
        result < 0 && result != -EAGAIN && result != -EBUSY && result != -EINTR;
    if (refused_) return false;
  }
  return true;
}

void UringReader::LeaveRing() {
  constexpr absl::Duration kPause = absl::Microseconds(100);
  while (under_way_ > 0) {
    // The kernel may refuse to wait as well; reads come in all the same.
    io_uring_cqe* first = nullptr;
    if (io_uring_wait_cqe(&ring_->ring, &first) < 0) absl::SleepFor(kPause);
    Reap(last_);
  }
  rest_ = std::make_unique<PreadReader>(depth_);
  rest_view_.store(rest_.get(), std::memory_order_release);
  rest_->Wake();  // for one that came just before
}

void UringReader::Wait(absl::Duration timeout,
                       std::vector<FileReadDone>& done) {
  if (rest_ == nullptr && refused_) LeaveRing();
  if (rest_ != nullptr) {
    const bool has_any = !last_.empty();
    done.insert(done.end(), last_.begin(), last_.end());
    last_.clear();
    return rest_->Wait(has_any ? absl::ZeroDuration() : timeout, done);
  }
  if (Reap(done) || timeout <= absl::ZeroDuration()) return;
  io_uring_cqe* first = nullptr;
  if (timeout == absl::InfiniteDuration()) {
    io_uring_wait_cqe(&ring_->ring, &first);  // a signal may end it: allowed
  } else {
    __kernel_timespec time = ToKernel(timeout);
    io_uring_wait_cqe_timeout(&ring_->ring, &first, &time);
  }
  Reap(done);
}

bool UringReader::Reap(std::vector<FileReadDone>& done) {
  io_uring_cqe* entry = nullptr;
  unsigned head = 0;
  unsigned num_entries = 0;
  bool woken = false;
  io_uring_for_each_cqe(&ring_->ring, head, entry) {
    ++num_entries;
    const uint64_t tag = io_uring_cqe_get_data64(entry);
    if (tag == LIBURING_UDATA_TIMEOUT) continue;
    if (tag == kWakeTag) {
      woken = true;
    } else {
      done.push_back({tag, entry->res});
      --under_way_;
    }
  }
  io_uring_cq_advance(&ring_->ring, num_entries);
  if (woken && !refused_) ArmWake();
  return num_entries > 0;
}

void UringReader::Wake() {
  const uint64_t one = 1;
  // Fails only if the counter is full, and then a wake-up is due anyway.
  const ssize_t written = write(ring_->event, &one, sizeof(one));
  static_cast<void>(written);
  FileReader* const rest = rest_view_.load(std::memory_order_acquire);
  if (rest != nullptr) rest->Wake();
}

}  // namespace portolan
