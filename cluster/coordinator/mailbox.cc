#include "cluster/coordinator/mailbox.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "runtime/base/check.h"

namespace portolan {

WakeEvent::WakeEvent() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  PORTOLAN_CHECK(fd_ >= 0);
}

WakeEvent::~WakeEvent() { close(fd_); }

void WakeEvent::Set() {
  const uint64_t one = 1;
  // Fails only where the counter is full, and then it is set.
  [[maybe_unused]] const ssize_t written = write(fd_, &one, sizeof(one));
}

void WakeEvent::Wait(absl::Duration timeout) {
  // Rounded up, lest a timer wakes us a moment before it is due, again and
  // again.
  timeout = std::clamp(timeout, absl::ZeroDuration(), absl::Hours(1));
  const timespec time = absl::ToTimespec(timeout + absl::Microseconds(50));
  pollfd poll_fd{.fd = fd_, .events = POLLIN, .revents = 0};
  if (ppoll(&poll_fd, 1, &time, nullptr) <= 0) return;
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = read(fd_, &count, sizeof(count));
}

}  // namespace portolan
