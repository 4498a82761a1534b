#include <gtest/gtest.h>
#include <sched.h>
#include <xmmintrin.h>

#include <atomic>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "runtime/base/thread_pool.h"

namespace portolan {
namespace {

// The CPUs that this thread may run on.
std::set<int> Cpus() {
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof(allowed), &allowed);
  std::set<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) cpus.insert(cpu);
  }
  return cpus;
}

bool FlushesDenormals() { return (_mm_getcsr() & 0x8040u) == 0x8040u; }

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

TEST(ThreadPoolTest, ALoopWithoutTasksCallsNothingAndLeavesThePoolReady) {
  ThreadPool pool(3);
  std::atomic<int> runs = 0;
  for (int round = 0; round < 100; ++round) {
    pool.ParallelFor(0, [&](int64_t) { ++runs; });
  }
  EXPECT_EQ(runs, 0);

  pool.ParallelFor(5, [&](int64_t) { ++runs; });

  EXPECT_EQ(runs, 5);
}

TEST(ThreadPoolTest, FewerTasksThanThreadsAreRunByWhoeverComesFirst) {
  ThreadPool pool(8);
  for (int round = 0; round < 500; ++round) {
    std::atomic<int> sum = 0;
    std::atomic<bool> in_range = true;

    pool.ParallelForThread(3, [&](int64_t i, int thread) {
      sum += static_cast<int>(i) + 1;
      if (thread < 0 || thread >= pool.num_threads()) in_range = false;
    });

    ASSERT_EQ(sum, 6);
    ASSERT_TRUE(in_range);
  }
}

TEST(ThreadPoolTest, NoThreadRunsTwoTasksAtOnceAndTheCallerIsThreadZero) {
  ThreadPool pool(4);
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> at_work[4] = {};
  std::atomic<int> wrong = 0;

  for (int round = 0; round < 200; ++round) {
    pool.ParallelForThread(32, [&](int64_t, int thread) {
      if (at_work[thread].fetch_add(1) != 0) ++wrong;
      if ((thread == 0) != (std::this_thread::get_id() == caller)) ++wrong;
      at_work[thread].fetch_sub(1);
    });
  }

  EXPECT_EQ(wrong, 0);
}

TEST(ThreadPoolTest, EveryThreadThatRunsTasksFlushesDenormals) {
  ThreadPool pool(4);
  std::thread other([&] {
    _mm_setcsr(_mm_getcsr() & ~0x8040u);
    std::atomic<int> wrong = 0;

    pool.ParallelFor(64, [&](int64_t) { wrong += !FlushesDenormals(); });

    EXPECT_EQ(wrong, 0);
  });
  other.join();
}

TEST(ThreadPoolTest, APoolEndsWhereverItsWorkersAre) {
  for (int round = 0; round < 200; ++round) {
    ThreadPool never_used(3);
    ThreadPool idle(3);
    std::atomic<int> runs = 0;
    for (int loop = 0; loop < round % 4; ++loop) {
      idle.ParallelFor(4, [&](int64_t) { ++runs; });
    }
    EXPECT_EQ(runs, round % 4 * 4);
  }
}

TEST(ThreadPoolDeathTest, ALoopInsideATaskIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const int num_threads : {1, 2}) {
    EXPECT_DEATH(
        {
          ThreadPool pool(num_threads);
          pool.ParallelFor(
              2, [&](int64_t) { pool.ParallelFor(2, [](int64_t) {}); });
        },
        "busy_");
  }
}

TEST(ThreadPoolTest, ABoundCallerGetsItsCpusBackWhenThePoolEnds) {
  const std::set<int> before = Cpus();
  const int cpu = *before.rbegin();
  if (before.size() < 2) GTEST_SKIP() << "this machine lends one CPU only";

  {
    const ThreadPool pool(2, {cpu, *before.begin()});
    EXPECT_EQ(Cpus(), std::set<int>{cpu});
  }

  EXPECT_EQ(Cpus(), before);
}

TEST(ThreadPoolTest, AThreadThatEndsAnothersPoolKeepsItsOwnCpus) {
  const std::set<int> before = Cpus();
  if (before.size() < 2) GTEST_SKIP() << "this machine lends one CPU only";
  std::optional<ThreadPool> pool;
  std::thread maker(
      [&] { pool.emplace(1, std::vector<int>{*before.begin()}); });
  maker.join();
  const ThreadPool binds(1, {*before.rbegin()});

  pool.reset();

  EXPECT_EQ(Cpus(), std::set<int>{*before.rbegin()});
}

TEST(ThreadPoolTest, APoolWithoutCpusBindsNobody) {
  const std::set<int> before = Cpus();
  ThreadPool pool(2);
  std::atomic<int> wrong = 0;

  pool.ParallelFor(64, [&](int64_t) { wrong += Cpus() != before; });

  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace portolan
