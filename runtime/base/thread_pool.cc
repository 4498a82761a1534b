#include "runtime/base/thread_pool.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <chrono>

#include "runtime/base/check.h"

namespace portolan {
namespace {

// How long a thread spins before it sleeps: longer than the gap between two
// loops of one layer, shorter than a scheduler would notice.
constexpr std::chrono::microseconds kSpin(30);

void BindTo(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  // A refused binding (a cgroup without that CPU) costs speed, not results.
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

std::optional<cpu_set_t> CpusOfThisThread() {
  cpu_set_t set;
  if (pthread_getaffinity_np(pthread_self(), sizeof(set), &set) != 0) {
    return std::nullopt;
  }
  return set;
}

// Waits until `value` differs from `old`: spins first, then sleeps.
uint32_t WaitForChange(const std::atomic<uint32_t>& value, uint32_t old) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      const uint32_t now = value.load(std::memory_order_acquire);
      if (now != old) return now;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

void FlushDenormals() {
  constexpr uint32_t kFlushToZeroAndDenormalsAreZero = 0x8040u;
  const uint32_t state = _mm_getcsr();
  if ((state & kFlushToZeroAndDenormalsAreZero) !=
      kFlushToZeroAndDenormalsAreZero) {
    _mm_setcsr(state | kFlushToZeroAndDenormalsAreZero);
  }
}

ThreadPool::ThreadPool(int num_threads, std::vector<int> cpus) {
  PORTOLAN_CHECK(num_threads >= 1);
  PORTOLAN_CHECK(cpus.empty() || static_cast<int>(cpus.size()) == num_threads);
  FlushDenormals();
  if (!cpus.empty()) {
    maker_ = std::this_thread::get_id();
    makers_cpus_ = CpusOfThisThread();
    BindTo(cpus[0]);
  }
  workers_.reserve(static_cast<size_t>(num_threads - 1));
  for (int i = 1; i < num_threads; ++i) {
    const int cpu = cpus.empty() ? -1 : cpus[static_cast<size_t>(i)];
    workers_.emplace_back([this, i, cpu] { Work(i, cpu); });
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  if (makers_cpus_.has_value() && maker_ == std::this_thread::get_id()) {
    pthread_setaffinity_np(pthread_self(), sizeof(*makers_cpus_),
                           &*makers_cpus_);
  }
}

void ThreadPool::ParallelFor(int64_t num_tasks,
                             absl::FunctionRef<void(int64_t)> task) {
  ParallelForThread(num_tasks, [task](int64_t i, int) { task(i); });
}

void ThreadPool::ParallelForThread(int64_t num_tasks,
                                   absl::FunctionRef<void(int64_t, int)> task) {
  PORTOLAN_CHECK(!busy_.load(std::memory_order_relaxed));
  busy_.store(true, std::memory_order_relaxed);
  Run(num_tasks, task);
  busy_.store(false, std::memory_order_relaxed);
}

void ThreadPool::Run(int64_t num_tasks,
                     absl::FunctionRef<void(int64_t, int)> task) {
  FlushDenormals();
  if (workers_.empty() || num_tasks <= 1) {
    for (int64_t i = 0; i < num_tasks; ++i) task(i, 0);
    return;
  }
  num_tasks_ = num_tasks;
  task_ = &task;
  next_task_.store(0, std::memory_order_relaxed);
  inside_.store(kOpen, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  RunTasks(0);
  uint32_t inside =
      inside_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  while (inside != 0) inside = WaitForChange(inside_, inside);
}

void ThreadPool::RunTasks(int thread) {
  while (true) {
    const int64_t i = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (i >= num_tasks_) return;
    (*task_)(i, thread);
  }
}

bool ThreadPool::Join() {
  uint32_t inside = inside_.load(std::memory_order_relaxed);
  while ((inside & kOpen) != 0) {
    if (inside_.compare_exchange_weak(inside, inside + 1,
                                      std::memory_order_acquire,
                                      std::memory_order_relaxed)) {
      return true;
    }
  }
  return false;
}

void ThreadPool::Leave() {
  // The caller sleeps at most while the loop is closed.
  if (inside_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    inside_.notify_one();
  }
}

void ThreadPool::Work(int thread, int cpu) {
  FlushDenormals();
  if (cpu >= 0) BindTo(cpu);
  uint32_t seen = 0;
  while (true) {
    seen = WaitForChange(epoch_, seen);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (!Join()) continue;
    RunTasks(thread);
    Leave();
  }
}

}  // namespace portolan
