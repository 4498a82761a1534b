#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/base/thread_pool.h"
#include "runtime/kernels/activation.h"
#include "runtime/kernels/kernel_table.h"
#include "runtime/kernels/packed_matrix.h"
#include "runtime/kernels/product_plan.h"
#include "runtime/kernels/scratch.h"

namespace portolan {

// One matrix product. Exactly one of `out` and `swiglu` receives it.
struct Product {
  const ActivationView* x = nullptr;
  PackedMatrix w;
  int64_t rows = 0;
  const int32_t* x_rows = nullptr;    // row i reads x_rows[i]; null: i
  const int32_t* out_rows = nullptr;  // and writes out_rows[i]; null: i
  const float* bias = nullptr;
  float* out = nullptr;
  int64_t out_stride = 0;
  const ActivationView* swiglu = nullptr;
};

// The faster kernel of a table for so many rows of `dtype`.
const GemmKernel& ChooseKernel(const KernelTable& table, ActivationDtype dtype,
                               int64_t rows);

// Runs matrix products in one parallel region: plans tasks, and for each of
// them prepares rows, multiplies pairs of output blocks and finishes them while
// they are in the cache. Internal to Kernels. Thread-compatible.
class ProductRunner {
 public:
  ProductRunner(const KernelTable& table, ThreadPool& pool);

  void Run(std::span<const Product> products);

 private:
  // What one thread works in.
  struct Workspace {
    Scratch x;
    Scratch w;  // tiles that a quantised matrix stands for
    Scratch c;
    Scratch pointers;
  };

  // Room in every workspace for products of so many inputs: who runs a task is
  // not known before, and a thread that runs its first one late shall not
  // allocate then.
  void ReserveFor(int64_t k);
  void RunTask(const Product& product, const ProductTask& task,
               Workspace& workspace) const;
  void Finish(const Product& product, int64_t first_row, int64_t rows,
              int64_t block, int64_t num_blocks, Workspace& workspace) const;

  const KernelTable& table_;
  ThreadPool& pool_;
  std::vector<Workspace> workspaces_;  // [thread]
  int64_t reserved_k_ = 0;
  std::vector<ProductShape> shapes_;
  std::vector<ProductTask> tasks_;
};

}  // namespace portolan
