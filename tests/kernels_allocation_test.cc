// What products and attention must not do in a step: allocate.

#include <gtest/gtest.h>

#include <vector>

#include "runtime/kernels/kernels.h"
#include "tests/counted_allocations.h"
#include "tests/kernel_test_util.h"

namespace portolan {
namespace {

TEST(KernelAllocationTest, ReservedAttentionAllocatesNothingHoweverItGrows) {
  constexpr int64_t kPositions = 20'000;
  constexpr int32_t kMostRows = 200;
  for (const int heads : {1, 3, 8}) {
    const KvLayout layout = {.num_kv_heads = 1, .head_dim = 40};
    ThreadPool pool(2);
    Kernels kernels(BestCpuPath(), pool);
    ASSERT_TRUE(kernels.ReserveAttention(layout, heads, kPositions).ok());
    // One page stands for all.
    auto page =
        *AlignedBuffer::Allocate(static_cast<size_t>(layout.PageBytes()));
    const std::vector<std::byte*> pages(kPositions / kPageTokens + 1,
                                        page.data());
    const Activations q(ActivationDtype::kBf16, kMostRows,
                        heads * layout.head_dim);
    const Activations out(ActivationDtype::kBf16, kMostRows,
                          heads * layout.head_dim);
    const auto attend = [&](int32_t rows, int64_t keys) {
      const Kernels::Sequence sequence = {
          .num_rows = rows,
          .first_position = static_cast<int32_t>(keys - rows),
          .pages = pages.data()};
      kernels.Attention(layout, {&sequence, 1}, q.Rows(0, rows), heads, 1,
                        /*window=*/0, out.Rows(0, rows));
    };
    // As many tasks as any call has, small ones: for the list of tasks.
    const std::vector<Kernels::Sequence> small(
        kMostRows, {.num_rows = 1, .pages = pages.data()});
    kernels.Attention(layout, small, q.Rows(0, 1), heads, 1, /*window=*/0,
                      out.Rows(0, 1));

    g_allocations = 0;
    g_counting = true;
    for (const int64_t keys : {200, 1'000, 2'731, 10'000, 20'000}) {
      for (const int32_t rows : {1, 2, 12, 33, 97, kMostRows}) {
        attend(rows, keys);
      }
    }
    g_counting = false;
    EXPECT_EQ(g_allocations, 0) << heads << " heads";
  }
}

}  // namespace
}  // namespace portolan
