#include <gtest/gtest.h>

#include "runtime/kernels/cpu_path.h"

namespace portolan {
namespace {

TEST(CpuPathTest, EveryNameIsReadBack) {
  for (const auto path : {CpuPath::kScalar, CpuPath::kAvx2, CpuPath::kAvx512,
                          CpuPath::kAvx512Bf16, CpuPath::kAmx}) {
    EXPECT_EQ(*ParseCpuPath(CpuPathName(path)), path);
  }
}

TEST(CpuPathTest, AnUnknownNameIsRefusedWithTheKnownOnes) {
  const auto path = ParseCpuPath("sse9");

  EXPECT_TRUE(absl::IsInvalidArgument(path.status()));
  EXPECT_EQ(path.status().message(),
            "\"sse9\" is no CPU path; write scalar, avx2, avx512, avx512bf16 "
            "or amx");
}

TEST(CpuPathTest, TheBestPathIsTheLastSupportedOne) {
  EXPECT_TRUE(CpuSupports(CpuPath::kScalar));
  EXPECT_TRUE(CpuSupports(BestCpuPath()));
  EXPECT_EQ(SupportedCpuPaths().front(), CpuPath::kScalar);
  EXPECT_EQ(SupportedCpuPaths().back(), BestCpuPath());
}

}  // namespace
}  // namespace portolan
