#include "runtime/kernels/product_plan.h"

#include <algorithm>

namespace portolan {
namespace {

// Costs count passes over one tile of weights; some 7 ns each. Bringing a tile
// from memory costs as much as this many rows of arithmetic.
constexpr int64_t kReadCost = 8;

// About 9 us: half of it is what another thread saves, and what it costs to
// bring it in.
constexpr int64_t kInlineCost = 1200;

// The least cost of a task, and the tasks that each thread should find: the
// last one of a region leaves the other threads idle for half of itself.
constexpr int64_t kLeastTaskCost = 400;
constexpr int64_t kTasksPerThread = 16;

// Every task prepares its rows anew. Where rows are many, that must be worth it
// for so many pairs of output blocks, as far as all threads have work then.
constexpr int64_t kManyRows = 4;
constexpr int64_t kPairsWorthRows = 16;

// Rows are split at multiples of this, the largest group of any path, and into
// parts of at most kMaxTaskRows, which are prepared at a time.
constexpr int64_t kRowStep = 32;
constexpr int64_t kMaxTaskRows = 96;

int64_t CeilDiv(int64_t value, int64_t by) { return (value + by - 1) / by; }

int64_t RoundUp(int64_t value, int64_t to) { return CeilDiv(value, to) * to; }

int64_t CostOfBlock(const ProductShape& product) {
  return product.k_blocks * (product.rows + kReadCost);
}

int64_t Pairs(const ProductShape& product) {
  return CeilDiv(product.blocks, 2);
}

// How one product is cut.
struct Cut {
  int64_t row_step = 1;
  int64_t block_step = 2;
};

Cut ChooseCut(const ProductShape& product, int64_t target,
              int64_t least_pairs) {
  const int64_t pairs = Pairs(product);
  int64_t row_parts = CeilDiv(product.rows, kMaxTaskRows);
  const auto cost_of_pair = [&] {
    return std::max<int64_t>(2 * CostOfBlock(product) / row_parts, 1);
  };
  int64_t block_parts = std::clamp<int64_t>(
      (pairs * cost_of_pair() + target / 2) / target, 1, pairs);
  if (product.rows >= kManyRows) {
    block_parts = std::min(block_parts, CeilDiv(pairs, least_pairs));
  }
  // Too few blocks to share: the rows must do.
  if (block_parts == pairs) {
    row_parts = std::max(row_parts, 2 * CostOfBlock(product) / target);
  }
  return {.row_step = RoundUp(CeilDiv(product.rows, row_parts), kRowStep),
          .block_step = 2 * CeilDiv(pairs, block_parts)};
}

void AddTasks(const ProductShape& product, int32_t index, const Cut& cut,
              std::vector<ProductTask>& tasks) {
  for (int64_t row = 0; row < product.rows; row += cut.row_step) {
    for (int64_t block = 0; block < product.blocks; block += cut.block_step) {
      ProductTask task;
      task.product = index;
      task.block_begin = static_cast<int32_t>(block);
      task.block_end = static_cast<int32_t>(
          std::min(block + cut.block_step, product.blocks));
      task.row_begin = static_cast<int32_t>(row);
      task.row_end =
          static_cast<int32_t>(std::min(row + cut.row_step, product.rows));
      tasks.push_back(task);
    }
  }
}

}  // namespace

bool PlanProducts(std::span<const ProductShape> products, int num_threads,
                  std::vector<ProductTask>& tasks) {
  tasks.clear();
  int64_t total = 0;
  int64_t pairs = 0;
  for (const ProductShape& product : products) {
    total += product.blocks * CostOfBlock(product);
    pairs += Pairs(product) * CeilDiv(product.rows, kMaxTaskRows);
  }
  const bool parallel = num_threads > 1 && total >= kInlineCost;
  const int64_t target =
      parallel
          ? std::max(kLeastTaskCost, total / (num_threads * kTasksPerThread))
          : std::max<int64_t>(total, 1);
  const int64_t least_pairs =
      std::clamp<int64_t>(pairs / (2 * num_threads), 1, kPairsWorthRows);
  for (size_t i = 0; i < products.size(); ++i) {
    const ProductShape& product = products[i];
    if (product.rows == 0 || product.blocks == 0) continue;
    const Cut cut = parallel ? ChooseCut(product, target, least_pairs)
                             : Cut{product.rows, product.blocks};
    AddTasks(product, static_cast<int32_t>(i), cut, tasks);
  }
  return parallel;
}

}  // namespace portolan
