#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/kernels/bench_kernels.h"

namespace portolan {
namespace {

TEST(BenchKernelsTest, MeasuresEveryPathAndFindsNothingWrong) {
  KernelBenchOptions options;
  options.num_threads = 2;
  options.rows = {1, 5};
  options.n = 64;
  options.k = 96;
  options.context = 80;
  options.pool_bytes = 1 << 20;
  options.seconds_per_row = 0;

  const std::vector<KernelBenchRow> rows = BenchKernels(options);

  for (const CpuPath path : SupportedCpuPaths()) {
    const std::string name(CpuPathName(path));
    EXPECT_THAT(rows,
                testing::Contains(testing::Field(&KernelBenchRow::path, name)));
  }
  for (const std::string name : {"linear", "linear int8", "8 experts int4"}) {
    EXPECT_EQ(std::count_if(
                  rows.begin(), rows.end(),
                  [&](const KernelBenchRow& row) { return row.name == name; }),
              static_cast<int64_t>(2 * SupportedCpuPaths().size()))
        << name;
  }
  for (const KernelBenchRow& row : rows) {
    EXPECT_EQ(row.wrong, 0) << row.name << " " << row.path << " " << row.m;
    EXPECT_GT(row.gb_s + row.gflop_s, 0) << row.name;
  }
}

TEST(BenchKernelsTest, TheTableHasOneLineARowAndAHead) {
  KernelBenchRow row;
  row.name = "linear";
  row.gb_s = 12.5;

  const std::string table = FormatKernelBench({row});

  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 2);
  EXPECT_THAT(table, testing::HasSubstr("12.5"));
}

}  // namespace
}  // namespace portolan
