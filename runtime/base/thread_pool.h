#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace portolan {

// Flushes denormals to zero (DAZ and FTZ) on the calling thread. Every thread
// that computes calls it; ThreadPool's workers do.
void FlushDenormals();

// A few threads that share parallel loops: the caller of ParallelFor() and
// num_threads - 1 workers, which spin for some microseconds after a loop and
// then sleep, so that an idle or oversubscribed machine is left alone.
//
// ParallelFor() allocates nothing. Thread-compatible: one loop at a time.
class ThreadPool {
 public:
  // cpus[i]: the logical CPU that thread i is bound to, the caller being
  // thread 0; empty: not bound. Requires num_threads >= 1.
  explicit ThreadPool(int num_threads, std::vector<int> cpus = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(i) once for every i in [0, num_tasks), on any of the threads,
  // and returns when all have ended. Tasks are claimed in rising order.
  void ParallelFor(int64_t num_tasks, absl::FunctionRef<void(int64_t)> task);

 private:
  void Work(int cpu);
  void RunTasks();

  // One loop. `epoch_` rises by one when it is published; a worker that saw the
  // epoch takes part and reports in `pending_workers_`.
  std::atomic<uint32_t> epoch_{0};
  std::atomic<int64_t> next_task_{0};
  std::atomic<uint32_t> pending_workers_{0};
  std::atomic<bool> stopping_{false};
  int64_t num_tasks_ = 0;                                 // set before epoch_
  absl::FunctionRef<void(int64_t)>* task_ = nullptr;      // set before epoch_

  std::vector<std::thread> workers_;
};

}  // namespace portolan
