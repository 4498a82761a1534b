#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/kernels/cpu_path.h"
#include "runtime/kernels/kernel_table.h"
#include "runtime/kernels/weight_format.h"

namespace portolan {

// What BenchKernels() measures. Sizes are those of one expert's matrix.
struct KernelBenchOptions {
  int num_threads = 1;
  std::vector<int> cpus;       // as ThreadPool
  std::vector<CpuPath> paths;  // empty: all that the machine supports
  // Of the matrices; empty: all.
  std::vector<WeightFormat> formats;
  std::vector<int64_t> rows = {1, 2, 4, 8, 16, 32, 64, 256};
  int64_t n = 1024;
  int64_t k = 1024;
  int64_t context = 4096;                 // positions that attention sees
  int64_t pool_bytes = int64_t{1} << 30;  // of weights: larger than the caches
  double seconds_per_row = 0.25;
  // For tests: measured under the names of the paths instead of their own.
  const KernelTable* table = nullptr;
};

// One line of the table.
struct KernelBenchRow {
  // "linear", "8 experts", "8 experts int8", ..., "pack"; the limits
  std::string name;
  std::string path;  // a CpuPathName(), or "-"
  int num_threads = 1;
  int64_t m = 0;
  double gb_s = 0;     // bytes of weights (or rows, or KV) read per second
  double gflop_s = 0;  // 0 where arithmetic is not the point
  double percent_of_limit = 0;  // the nearer of the two measured limits
  // Results whose bits differ from the scalar path's, of some of the rows.
  int64_t wrong = 0;
};

// Measures the machine's read bandwidth and arithmetic first (the limits: rows
// "read bandwidth" and "peak"), with 1 and with num_threads threads, then every
// kernel on every path with cold weights. Takes some seconds per path.
// Percentages compare with num_threads.
std::vector<KernelBenchRow> BenchKernels(const KernelBenchOptions& options);

// Bytes of memory that BenchKernels() writes, but for small change. It takes
// them or ends the process: look first whether they are there.
int64_t KernelBenchBytes(const KernelBenchOptions& options);

// The table for people, one line a row.
std::string FormatKernelBench(const std::vector<KernelBenchRow>& rows);

}  // namespace portolan
