#include <gtest/gtest.h>

#include <thread>

#include "runtime/base/mutex.h"
#include "runtime/base/steady_now.h"

namespace portolan {
namespace {

// Set by one thread, awaited by another.
struct Flag {
  Mutex mu;
  CondVar changed;
  bool set ABSL_GUARDED_BY(mu) = false;

  void Set() {
    {
      MutexLock lock(mu);
      set = true;
    }
    changed.NotifyAll();
  }
  void Await(absl::Duration timeout) {
    MutexLock lock(mu);
    while (!set) changed.WaitFor(mu, timeout);
  }
};

TEST(CondVarTest, AWaitForAnyTimeEndsWithANotification) {
  for (const absl::Duration timeout :
       {absl::InfiniteDuration(), absl::Hours(1'000'000), absl::Seconds(10)}) {
    Flag flag;
    std::thread other([&] { flag.Set(); });
    flag.Await(timeout);
    other.join();
  }
}

TEST(CondVarTest, AWaitEndsWithItsTimeout) {
  Flag flag;
  const absl::Time start = SteadyNow();
  for (const absl::Duration timeout :
       {absl::ZeroDuration(), -absl::Seconds(1), -absl::InfiniteDuration(),
        absl::Milliseconds(1)}) {
    MutexLock lock(flag.mu);
    flag.changed.WaitFor(flag.mu, timeout);
  }
  EXPECT_LT(SteadyNow() - start, absl::Seconds(60));
}

}  // namespace
}  // namespace portolan
