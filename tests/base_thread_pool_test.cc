#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "runtime/base/thread_pool.h"

namespace portolan {
namespace {

TEST(ThreadPoolTest, RunsEveryTaskExactlyOnce) {
  for (const int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    for (const int64_t num_tasks : {0, 1, 2, 3, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(num_tasks));

      pool.ParallelFor(num_tasks,
                       [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });

      for (const auto& count : runs) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ThreadPoolTest, TheCallerSeesWhatTheTasksWrote) {
  ThreadPool pool(3);
  std::vector<int64_t> squares(64);
  for (int round = 0; round < 2000; ++round) {
    pool.ParallelFor(64, [&](int64_t i) {
      squares[static_cast<size_t>(i)] = i * i + round;
    });
    for (int64_t i = 0; i < 64; ++i) {
      ASSERT_EQ(squares[static_cast<size_t>(i)], i * i + round);
    }
  }
}

}  // namespace
}  // namespace portolan
