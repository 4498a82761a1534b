#include <gtest/gtest.h>

#include <vector>

#include "runtime/kernels/packed_matrix.h"

namespace portolan {
namespace {

TEST(PackedMatrixTest, EveryWeightLiesWhereTheLayoutSays) {
  constexpr int64_t kN = 35;
  constexpr int64_t kK = 71;
  std::vector<Bf16> weights(kN * kK);
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i].bits = static_cast<uint16_t>(i + 1);
  }
  std::vector<Bf16> packed(PackedBytes(kN, kK) / 2, Bf16{0xffff});

  PackMatrix(weights.data(), kK, kN, kK, packed.data());

  const int64_t k_blocks = NumInputBlocks(kK);
  for (int64_t n = 0; n < NumOutputBlocks(kN) * 16; ++n) {
    for (int64_t k = 0; k < k_blocks * 32; ++k) {
      const int64_t at = ((n / 16) * k_blocks + k / 32) * 512 +
                         (k % 32) / 2 * 32 + (n % 16) * 2 + k % 2;
      const int64_t expected = n < kN && k < kK ? n * kK + k + 1 : 0;
      EXPECT_EQ(packed[static_cast<size_t>(at)].bits, expected);
    }
  }
}

}  // namespace
}  // namespace portolan
