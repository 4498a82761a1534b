#include "comm/termination.h"

#include <signal.h>

#include <atomic>

namespace portolan {
namespace {

std::atomic<int> count{0};
static_assert(std::atomic<int>::is_always_lock_free);

void Count(int /*signal*/) { count.fetch_add(1, std::memory_order_relaxed); }

}  // namespace

void CatchTermination() {
  struct sigaction action = {};
  action.sa_handler = Count;
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, nullptr);
}

int TerminationCount() { return count.load(std::memory_order_relaxed); }

}  // namespace portolan
