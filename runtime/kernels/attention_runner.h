#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/kernel_table.h"
#include "runtime/kernels/kernels.h"
#include "runtime/kernels/scratch.h"

namespace portolan {

// The attention of Kernels::Attention(). Internal. Thread-compatible.
//
// A task takes some query rows of one sequence with all the query heads that
// share a KV head. It multiplies them with K page by page into a matrix of
// scores, turns each row into weights (exact maximum over all visible
// positions, sum in lanes by absolute position), and multiplies those with V
// page by page. What a row cannot see has the weight 0 and adds nothing, so the
// rows of a task do not influence each other.
class AttentionRunner {
 public:
  struct Call {
    const KvLayout* layout = nullptr;
    const ActivationView* q = nullptr;
    const ActivationView* out = nullptr;
    int num_heads = 0;
    float scale = 1;
    int64_t window = 0;
  };

  AttentionRunner(const KernelTable& table, ThreadPool& pool);

  // Memory for sequences of so many positions, on every thread, so that Run()
  // allocates none however they grow.
  absl::Status Reserve(const KvLayout& layout, int num_heads,
                       int64_t positions);

  void Run(const Call& call, std::span<const Kernels::Sequence> sequences);

 private:
  // Query rows [begin, end) of a sequence, with the heads of one KV head.
  struct Task {
    const Kernels::Sequence* sequence = nullptr;
    int32_t kv_head = 0;
    int32_t begin = 0;
    int32_t end = 0;
  };
  struct Workspace {
    Scratch prepared;
    Scratch scores;
    Scratch sums;
    Scratch pointers;
    Scratch values;
  };
  // One task at work.
  struct Frame;

  int64_t PlanTasks(const Call& call,
                    std::span<const Kernels::Sequence> sequences);
  void RunTask(const Call& call, const Task& task, Workspace& workspace) const;
  void Score(const Call& call, const Frame& frame, Workspace& workspace) const;
  void Weigh(const Call& call, const Frame& frame, Workspace& workspace) const;
  void SumValues(const Call& call, const Frame& frame,
                 Workspace& workspace) const;
  void Finish(const Call& call, const Frame& frame, Workspace& workspace) const;

  const KernelTable& table_;
  ThreadPool& pool_;
  std::vector<Workspace> workspaces_;  // [thread]
  std::vector<Task> tasks_;
};

}  // namespace portolan
