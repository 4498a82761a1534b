#include "runtime/kernels/product_plan.h"

#include <algorithm>

namespace portolan {
namespace {

// Costs count passes over one tile of weights; some 7 ns each. Bringing a tile
// from memory costs as much as this many rows of arithmetic.
constexpr int64_t kReadCost = 8;

// About 5 us: what another thread must save to be worth its wake-up.
constexpr int64_t kInlineCost = 700;

// The least cost of a task, and the tasks that each thread should find.
constexpr int64_t kLeastTaskCost = 400;
constexpr int64_t kTasksPerThread = 6;

// Rows are split at multiples of this, the largest group of any path.
constexpr int64_t kRowStep = 32;

int64_t RoundUp(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

int64_t CostOfBlock(const ProductShape& product) {
  return product.k_blocks * (product.rows + kReadCost);
}

void AddTasks(const ProductShape& product, int32_t index, int64_t target,
              std::vector<ProductTask>& tasks) {
  if (product.rows == 0 || product.blocks == 0) return;
  const int64_t pair_cost = std::max<int64_t>(2 * CostOfBlock(product), 1);
  const int64_t block_step =
      2 * std::clamp<int64_t>(target / pair_cost, 1, (product.blocks + 1) / 2);
  const int64_t row_parts = std::max<int64_t>(pair_cost / target, 1);
  const int64_t row_step =
      RoundUp((product.rows + row_parts - 1) / row_parts, kRowStep);
  for (int64_t block = 0; block < product.blocks; block += block_step) {
    for (int64_t row = 0; row < product.rows; row += row_step) {
      ProductTask task;
      task.product = index;
      task.block_begin = static_cast<int32_t>(block);
      task.block_end =
          static_cast<int32_t>(std::min(block + block_step, product.blocks));
      task.row_begin = static_cast<int32_t>(row);
      task.row_end =
          static_cast<int32_t>(std::min(row + row_step, product.rows));
      tasks.push_back(task);
    }
  }
}

}  // namespace

bool PlanProducts(std::span<const ProductShape> products, int num_threads,
                  std::vector<ProductTask>& tasks) {
  tasks.clear();
  int64_t total = 0;
  for (const ProductShape& product : products) {
    total += product.blocks * CostOfBlock(product);
  }
  const bool parallel = num_threads > 1 && total >= kInlineCost;
  const int64_t target =
      parallel
          ? std::max(kLeastTaskCost, total / (num_threads * kTasksPerThread))
          : std::max<int64_t>(total, 1);
  for (size_t i = 0; i < products.size(); ++i) {
    AddTasks(products[i], static_cast<int32_t>(i), target, tasks);
  }
  return parallel;
}

}  // namespace portolan
