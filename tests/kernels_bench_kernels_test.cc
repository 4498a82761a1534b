#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "runtime/kernels/bench_kernels.h"

namespace portolan {
namespace {

KernelBenchOptions Quick() {
  KernelBenchOptions options;
  options.num_threads = 2;
  options.rows = {1, 5};
  options.n = 64;
  options.k = 96;
  options.context = 80;
  options.pool_bytes = 1 << 20;
  options.seconds_per_row = 0;
  return options;
}

TEST(BenchKernelsTest, MeasuresEveryPathAndFindsNothingWrong) {
  const KernelBenchOptions options = Quick();

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
  EXPECT_THAT(rows,
              testing::Contains(testing::Field(&KernelBenchRow::name, "pack")));
  for (const KernelBenchRow& row : rows) {
    EXPECT_EQ(row.wrong, 0) << row.name << " " << row.path << " " << row.m;
    EXPECT_GT(row.gb_s + row.gflop_s, 0) << row.name;
  }
}

// The product of scalar code, but for one bit of the last row.
void MultiplyWrongly(const MultiplyArgs& args) {
  ScalarTable().bf16_few.multiply(args);
  float& last = args.c[(args.rows - 1) * args.c_stride];
  last = std::nextafter(last, 1e30f);
}

TEST(BenchKernelsTest, AKernelThatIsWrongInEveryGroupAlikeIsFound) {
  KernelTable wrong = ScalarTable();
  wrong.peak = [](int64_t iterations, float*) { return iterations; };
  wrong.bf16_few.multiply = MultiplyWrongly;
  wrong.bf16_many.multiply = MultiplyWrongly;
  KernelBenchOptions options = Quick();
  options.num_threads = 1;  // one task a matrix
  options.paths = {CpuPath::kScalar};
  options.table = &wrong;

  const std::vector<KernelBenchRow> rows = BenchKernels(options);

  std::set<std::string> found;
  for (const KernelBenchRow& row : rows) {
    if (row.name.find("linear") == 0 || row.name.find("8 experts") == 0) {
      EXPECT_GT(row.wrong, 0) << row.name << " " << row.m;
      found.insert(row.name);
    }
  }
  EXPECT_THAT(found, testing::UnorderedElementsAre(
                         "linear", "linear int8", "linear int4", "8 experts",
                         "8 experts int8", "8 experts int4"));
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
