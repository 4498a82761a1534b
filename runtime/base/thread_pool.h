#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace portolan {

// Flushes denormals to zero (DAZ and FTZ) on the calling thread. Every thread
// that computes calls it; ThreadPool's workers do, and so does the thread that
// calls ParallelFor().
void FlushDenormals();

// A few threads that share parallel loops: the caller of ParallelFor() and
// num_threads - 1 workers, which spin for some microseconds after a loop and
// then sleep, so that an idle or oversubscribed machine is left alone. A worker
// that wakes too late takes no part in the loop, and the loop does not wait for
// it.
//
// ParallelFor() allocates nothing. Thread-compatible: one loop at a time, and
// no loop inside a task, which ends the process.
class ThreadPool {
 public:
  // cpus[i]: the logical CPU that thread i is bound to, the caller being
  // thread 0; empty: not bound. The caller gets back the CPUs that it had when
  // the pool ends, if it is the thread that ends it. Requires num_threads >= 1.
  explicit ThreadPool(int num_threads, std::vector<int> cpus = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(i) once for every i in [0, num_tasks), on any of the threads,
  // and returns when all have ended. Tasks are claimed in rising order.
  void ParallelFor(int64_t num_tasks, absl::FunctionRef<void(int64_t)> task);

  // As ParallelFor(), with task(i, thread): `thread` in [0, num_threads())
  // never runs two tasks at once, the caller is 0.
  void ParallelForThread(int64_t num_tasks,
                         absl::FunctionRef<void(int64_t, int)> task);

 private:
  void Run(int64_t num_tasks, absl::FunctionRef<void(int64_t, int)> task);
  void Work(int thread, int cpu);
  void RunTasks(int thread);
  bool Join();
  void Leave();

  // Workers that found the loop open and have not left it, plus kOpen while
  // workers may join. The caller may touch the loop's description only while
  // this is 0.
  static constexpr uint32_t kOpen = 1u << 31;
  std::atomic<uint32_t> inside_{0};
  // Written by the caller alone, read by whoever would be a second one.
  std::atomic<bool> busy_{false};
  // Rises by one for every loop: what idle workers wait for.
  std::atomic<uint32_t> epoch_{0};
  std::atomic<bool> stopping_{false};

  // The loop, written before it opens.
  std::atomic<int64_t> next_task_{0};
  int64_t num_tasks_ = 0;
  absl::FunctionRef<void(int64_t, int)>* task_ = nullptr;

  // Who made the pool and the CPUs that it had, where it was bound.
  std::thread::id maker_;
  std::optional<cpu_set_t> makers_cpus_;

  std::vector<std::thread> workers_;
};

}  // namespace portolan
