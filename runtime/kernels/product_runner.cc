#include "runtime/kernels/product_runner.h"

#include <algorithm>
#include <cstring>

#include "runtime/base/check.h"

namespace portolan {
namespace {

// Output blocks that one call multiplies: a pair, as gate and up lie.
constexpr int64_t kBlocksPerCall = 2;
constexpr int64_t kColsPerCall = kBlocksPerCall * kTileOutputs;

// Rows that are prepared at a time: a multiple of every kernel's group that
// keeps them, prepared, in about this much of the second-level cache.
constexpr int64_t kMaxRows = 96;
constexpr int64_t kMaxRowGroup = 32;
constexpr int64_t kPreparedBytes = 384 * 1024;

// Blocks of K that are unpacked at a time: two output blocks of them leave room
// for x and the next weights in the first-level cache.
constexpr int64_t kUnpackedKBlocks = 8;

int64_t RoundUp(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

int64_t RowsPerChunk(const GemmKernel& kernel, int64_t rows, int64_t k) {
  const int64_t fitting =
      std::clamp<int64_t>(kPreparedBytes / (kernel.x_element_bytes * k) /
                              kernel.row_group * kernel.row_group,
                          kernel.row_group, kMaxRows);
  const int64_t chunks = (rows + fitting - 1) / fitting;
  return RoundUp((rows + chunks - 1) / chunks, kernel.row_group);
}

// Null for bf16.
const QuantisedKernel* QuantisedOf(const KernelTable& table,
                                   WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return nullptr;
    case WeightFormat::kInt8:
      return &table.int8;
    case WeightFormat::kInt4:
      return &table.int4;
  }
  return nullptr;
}

int64_t RowOf(const int32_t* rows, int64_t i) {
  return rows == nullptr ? i : rows[i];
}

// Of packed weights as `args` tells, a stretch of K after the other.
void MultiplyUnpacked(const QuantisedKernel& quantised,
                      void (*multiply)(const MultiplyArgs&),
                      WeightFormat format, Bf16* unpacked, MultiplyArgs args) {
  const auto* packed = static_cast<const std::byte*>(args.w);
  const int64_t k_blocks = args.x_k_blocks;
  args.w = unpacked;
  args.w_end = nullptr;
  for (int64_t kb = 0; kb < k_blocks; kb += kUnpackedKBlocks) {
    args.first_k_block = kb;
    args.k_blocks = std::min(kUnpackedKBlocks, k_blocks - kb);
    args.w_block_stride = args.k_blocks * kTileElements;
    args.accumulate = kb > 0;
    for (int64_t b = 0; b < args.num_blocks; ++b) {
      quantised.unpack(
          packed + (b * k_blocks + kb) * TileBytes(format), args.k_blocks,
          reinterpret_cast<uint16_t*>(unpacked + b * args.w_block_stride));
    }
    multiply(args);
  }
}

}  // namespace

const GemmKernel& ChooseKernel(const KernelTable& table, ActivationDtype dtype,
                               int64_t rows) {
  if (dtype == ActivationDtype::kF32) return table.f32;
  return rows >= table.many_rows ? table.bf16_many : table.bf16_few;
}

ProductRunner::ProductRunner(const KernelTable& table, ThreadPool& pool)
    : table_(table),
      pool_(pool),
      workspaces_(static_cast<size_t>(pool.num_threads())) {}

void ProductRunner::Run(std::span<const Product> products) {
  shapes_.clear();
  for (const Product& product : products) {
    PORTOLAN_CHECK(product.x->cols == product.w.k);
    if (product.w.k > reserved_k_) ReserveFor(product.w.k);
    shapes_.push_back({.rows = product.rows,
                       .blocks = NumOutputBlocks(product.w.n),
                       .k_blocks = NumInputBlocks(product.w.k)});
  }
  const bool parallel = PlanProducts(shapes_, pool_.num_threads(), tasks_);
  const auto run = [&](int64_t i, int thread) {
    const ProductTask& task = tasks_[static_cast<size_t>(i)];
    RunTask(products[static_cast<size_t>(task.product)], task,
            workspaces_[static_cast<size_t>(thread)]);
  };
  const auto num_tasks = static_cast<int64_t>(tasks_.size());
  if (parallel) {
    pool_.ParallelForThread(num_tasks, run);
    return;
  }
  FlushDenormals();
  for (int64_t i = 0; i < num_tasks; ++i) run(i, 0);
}

void ProductRunner::ReserveFor(int64_t k) {
  const int64_t row = NumInputBlocks(k) * kTileInputs * 4;
  for (Workspace& workspace : workspaces_) {
    workspace.x.Get<std::byte>(std::max(kPreparedBytes, kMaxRowGroup * row));
    workspace.w.Get<Bf16>(kBlocksPerCall * kUnpackedKBlocks * kTileElements);
    workspace.c.Get<float>(kMaxRows * kColsPerCall);
    workspace.pointers.Get<const void*>(kMaxRows);
  }
  reserved_k_ = k;
}

void ProductRunner::RunTask(const Product& product, const ProductTask& task,
                            Workspace& workspace) const {
  const ActivationView& x = *product.x;
  const int64_t k_blocks = NumInputBlocks(product.w.k);
  const int64_t task_rows = task.row_end - task.row_begin;
  const QuantisedKernel* quantised = QuantisedOf(table_, product.w.format);
  const bool direct = quantised != nullptr &&
                      x.dtype == ActivationDtype::kBf16 &&
                      task_rows <= quantised->few_rows;
  const bool unpack = quantised != nullptr && !direct;
  const GemmKernel& kernel =
      direct ? quantised->few : ChooseKernel(table_, x.dtype, task_rows);
  const int64_t chunk = RowsPerChunk(kernel, task_rows, k_blocks * kTileInputs);
  const auto* w = static_cast<const std::byte*>(product.w.data);
  const int64_t block_bytes = k_blocks * TileBytes(product.w.format);
  Bf16* unpacked = unpack
                       ? workspace.w.Get<Bf16>(kBlocksPerCall *
                                               kUnpackedKBlocks * kTileElements)
                       : nullptr;

  MultiplyArgs args;
  args.x_k_blocks = k_blocks;
  args.k_blocks = k_blocks;
  args.w_block_stride = direct ? block_bytes : k_blocks * kTileElements;
  args.w_end = w + task.block_end * block_bytes;
  args.c_stride = kColsPerCall;
  args.c = workspace.c.Get<float>(RoundUp(chunk, kMaxRowGroup) * kColsPerCall);
  std::byte* prepared =
      workspace.x.Get<std::byte>(RoundUp(chunk, kernel.row_group) * k_blocks *
                                 kTileInputs * kernel.x_element_bytes);
  args.x = prepared;
  const void** rows = workspace.pointers.Get<const void*>(chunk);

  if (kernel.enter != nullptr) kernel.enter();
  for (int64_t row = task.row_begin; row < task.row_end; row += chunk) {
    args.rows = std::min<int64_t>(chunk, task.row_end - row);
    for (int64_t i = 0; i < args.rows; ++i) {
      rows[i] = x.Row(RowOf(product.x_rows, row + i));
    }
    kernel.prepare(rows, args.rows, x.cols, k_blocks, prepared);
    const auto multiply =
        direct && quantised->multiply_in_range != nullptr &&
                quantised->in_range(prepared,
                                    args.rows * k_blocks * kTileInputs)
            ? quantised->multiply_in_range
            : kernel.multiply;
    for (int64_t block = task.block_begin; block < task.block_end;
         block += kBlocksPerCall) {
      args.w = w + block * block_bytes;
      args.num_blocks = std::min(kBlocksPerCall, task.block_end - block);
      if (unpack) {
        MultiplyUnpacked(*quantised, multiply, product.w.format, unpacked,
                         args);
      } else {
        multiply(args);
      }
      Finish(product, row, args.rows, block, args.num_blocks, workspace);
    }
  }
  if (kernel.leave != nullptr) kernel.leave();
}

void ProductRunner::Finish(const Product& product, int64_t first_row,
                           int64_t rows, int64_t block, int64_t num_blocks,
                           Workspace& workspace) const {
  const float* c = workspace.c.Get<float>(0);
  if (product.swiglu != nullptr) {
    const ActivationView& h = *product.swiglu;
    const bool to_bf16 = h.dtype == ActivationDtype::kBf16;
    const int64_t col = block / 2 * kTileOutputs * BytesOf(h.dtype);
    void** to = workspace.pointers.Get<void*>(0);
    for (int64_t i = 0; i < rows; ++i) {
      to[i] = h.Row(RowOf(product.out_rows, first_row + i)) + col;
    }
    table_.swiglu(c, kColsPerCall, rows, to, to_bf16);
    return;
  }
  const int64_t col = block * kTileOutputs;
  const int64_t cols = std::min(num_blocks * kTileOutputs, product.w.n - col);
  for (int64_t i = 0; i < rows; ++i, c += kColsPerCall) {
    float* out = product.out +
                 RowOf(product.out_rows, first_row + i) * product.out_stride +
                 col;
    if (product.bias == nullptr) {
      std::memcpy(out, c, static_cast<size_t>(cols) * sizeof(float));
      continue;
    }
    for (int64_t j = 0; j < cols; ++j) out[j] = c[j] + product.bias[col + j];
  }
}

}  // namespace portolan
