#include "runtime/base/thread_pool.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include "runtime/base/check.h"

namespace portolan {
namespace {

// About 20 us of spinning on current processors: longer than the gap between
// two loops of one layer, shorter than a scheduler would notice.
constexpr int kSpins = 600;

void BindTo(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  // A refused binding (a cgroup without that CPU) costs speed, not results.
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

// Waits until `value` differs from `old`: spins first, then sleeps.
uint32_t WaitForChange(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    _mm_pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

void FlushDenormals() {
  _MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_ON);
  _mm_setcsr(_mm_getcsr() | 0x0040u);  // DAZ
}

ThreadPool::ThreadPool(int num_threads, std::vector<int> cpus) {
  PORTOLAN_CHECK(num_threads >= 1);
  PORTOLAN_CHECK(cpus.empty() || static_cast<int>(cpus.size()) == num_threads);
  FlushDenormals();
  if (!cpus.empty()) BindTo(cpus[0]);
  workers_.reserve(static_cast<size_t>(num_threads - 1));
  for (int i = 1; i < num_threads; ++i) {
    const int cpu = cpus.empty() ? -1 : cpus[static_cast<size_t>(i)];
    workers_.emplace_back([this, cpu] { Work(cpu); });
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(int64_t num_tasks,
                             absl::FunctionRef<void(int64_t)> task) {
  if (workers_.empty() || num_tasks <= 1) {
    for (int64_t i = 0; i < num_tasks; ++i) task(i);
    return;
  }
  num_tasks_ = num_tasks;
  task_ = &task;
  next_task_.store(0, std::memory_order_relaxed);
  pending_workers_.store(static_cast<uint32_t>(workers_.size()),
                         std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  RunTasks();
  uint32_t pending = pending_workers_.load(std::memory_order_acquire);
  while (pending != 0) pending = WaitForChange(pending_workers_, pending);
}

void ThreadPool::RunTasks() {
  while (true) {
    const int64_t i = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (i >= num_tasks_) return;
    (*task_)(i);
  }
}

void ThreadPool::Work(int cpu) {
  FlushDenormals();
  if (cpu >= 0) BindTo(cpu);
  uint32_t seen = 0;
  while (true) {
    seen = WaitForChange(epoch_, seen);
    if (stopping_.load(std::memory_order_relaxed)) return;
    RunTasks();
    if (pending_workers_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      pending_workers_.notify_one();
    }
  }
}

}  // namespace portolan
