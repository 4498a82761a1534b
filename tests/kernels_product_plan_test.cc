#include <gtest/gtest.h>

#include <map>
#include <tuple>

#include "runtime/kernels/product_plan.h"

namespace portolan {
namespace {

// Invariant: every (product, block, row) lies in exactly one task.
void ExpectExactCover(std::span<const ProductShape> products,
                      const std::vector<ProductTask>& tasks) {
  std::map<std::tuple<int, int, int>, int> covered;
  for (const ProductTask& task : tasks) {
    for (int block = task.block_begin; block < task.block_end; ++block) {
      for (int row = task.row_begin; row < task.row_end; ++row) {
        ++covered[{task.product, block, row}];
      }
    }
  }
  int64_t outputs = 0;
  for (const ProductShape& p : products) outputs += p.rows * p.blocks;
  EXPECT_EQ(static_cast<int64_t>(covered.size()), outputs);
  for (const auto& [where, times] : covered) EXPECT_EQ(times, 1);
}

TEST(ProductPlanTest, CoversEveryOutputOnce) {
  const ProductShape products[] = {{.rows = 1, .blocks = 64, .k_blocks = 32},
                                   {.rows = 0, .blocks = 64, .k_blocks = 32},
                                   {.rows = 300, .blocks = 5, .k_blocks = 64},
                                   {.rows = 33, .blocks = 1, .k_blocks = 1},
                                   {.rows = 7, .blocks = 0, .k_blocks = 9}};
  std::vector<ProductTask> tasks;
  for (const int num_threads : {1, 2, 16}) {
    PlanProducts(products, num_threads, tasks);
    ExpectExactCover(products, tasks);
  }
}

TEST(ProductPlanTest, KeepsGateAndUpTogether) {
  const ProductShape product = {.rows = 3, .blocks = 62, .k_blocks = 32};
  std::vector<ProductTask> tasks;

  EXPECT_TRUE(PlanProducts({&product, 1}, 4, tasks));

  for (const ProductTask& task : tasks) EXPECT_EQ(task.block_begin % 2, 0);
}

TEST(ProductPlanTest, GivesEveryThreadWork) {
  const ProductShape product = {.rows = 1, .blocks = 64, .k_blocks = 32};
  std::vector<ProductTask> tasks;

  PlanProducts({&product, 1}, 16, tasks);

  EXPECT_GE(tasks.size(), 16u);
}

TEST(ProductPlanTest, SplitsRowsWhereBlocksAreFew) {
  const ProductShape gate = {.rows = 512, .blocks = 2, .k_blocks = 64};
  std::vector<ProductTask> tasks;

  PlanProducts({&gate, 1}, 4, tasks);

  EXPECT_GE(tasks.size(), 8u);
}

TEST(ProductPlanTest, CutsProductsOfEqualSizeIntoTasksOfEqualSize) {
  const std::vector<ProductShape> experts(
      8, {.rows = 1, .blocks = 64, .k_blocks = 32});
  std::vector<ProductTask> tasks;

  PlanProducts(experts, 2, tasks);

  EXPECT_GE(tasks.size(), 16u);
  for (const ProductTask& task : tasks) {
    EXPECT_EQ(task.block_end - task.block_begin,
              tasks[0].block_end - tasks[0].block_begin);
  }
}

// A task that prepares 96 rows for two pairs of blocks would spend a third of
// its time on that.
TEST(ProductPlanTest, DoesNotPrepareManyRowsForFewOutputs) {
  const ProductShape prefill = {.rows = 512, .blocks = 64, .k_blocks = 32};
  std::vector<ProductTask> tasks;

  PlanProducts({&prefill, 1}, 2, tasks);

  EXPECT_GE(tasks.size(), 4u);
  for (const ProductTask& task : tasks) {
    EXPECT_GE(task.block_end - task.block_begin, 16);
    EXPECT_LE(task.row_end - task.row_begin, 96);
  }
}

TEST(ProductPlanTest, LeavesSmallWorkToTheCaller) {
  const ProductShape tiny = {.rows = 1, .blocks = 4, .k_blocks = 2};
  std::vector<ProductTask> tasks;

  EXPECT_FALSE(PlanProducts({&tiny, 1}, 8, tasks));
  EXPECT_EQ(tasks.size(), 1u);
}

}  // namespace
}  // namespace portolan
