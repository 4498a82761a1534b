#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "runtime/base/memory_available.h"

namespace portolan {
namespace {

constexpr int64_t kMiB = 1 << 20;

class AvailableMemoryTest : public ::testing::Test {
 protected:
  AvailableMemoryTest()
      : root_(std::filesystem::path(::testing::TempDir()) /
              ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(root_);
    Write("proc/meminfo",
          "MemTotal:       16384 kB\n"
          "MemFree:          100 kB\n"
          "MemAvailable:    8192 kB\n");
  }
  ~AvailableMemoryTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& name, const std::string& text) {
    std::filesystem::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
  }

  int64_t Available() const { return AvailableMemory(root_.string()); }

  const std::filesystem::path root_;
};

TEST_F(AvailableMemoryTest, WithoutALimitItIsTheMachines) {
  EXPECT_EQ(Available(), 8 * kMiB);
}

TEST_F(AvailableMemoryTest, AGroupOfVersion1LimitsAndItsPageCacheIsFree) {
  Write("proc/self/cgroup", "5:cpu:/jobs\n4:memory:/jobs/one\n0::/\n");
  Write("sys/fs/cgroup/memory/jobs/one/memory.limit_in_bytes", "4194304\n");
  Write("sys/fs/cgroup/memory/jobs/one/memory.usage_in_bytes", "3145728\n");
  Write("sys/fs/cgroup/memory/jobs/one/memory.stat",
        "inactive_file 7\ntotal_inactive_file 1048576\n"
        "total_active_file 524288\n");
  EXPECT_EQ(Available(), 2 * kMiB + kMiB / 2);
}

TEST_F(AvailableMemoryTest, AGroupOfVersion2Limits) {
  Write("proc/self/cgroup", "0::/user.slice/job\n");
  Write("sys/fs/cgroup/user.slice/job/memory.max", "5242880\n");
  Write("sys/fs/cgroup/user.slice/job/memory.current", "2097152\n");
  Write("sys/fs/cgroup/user.slice/job/memory.stat",
        "anon 5\ninactive_file 1048576\nactive_file 0\n");
  EXPECT_EQ(Available(), 4 * kMiB);
}

TEST_F(AvailableMemoryTest, AGroupAboveLimitsToo) {
  Write("proc/self/cgroup", "0::/user.slice/job\n");
  Write("sys/fs/cgroup/user.slice/memory.max", "3145728\n");
  Write("sys/fs/cgroup/user.slice/memory.current", "1048576\n");
  Write("sys/fs/cgroup/user.slice/job/memory.max", "max\n");
  Write("sys/fs/cgroup/user.slice/job/memory.current", "1048576\n");
  EXPECT_EQ(Available(), 2 * kMiB);
}

TEST_F(AvailableMemoryTest, AGroupThatIsFullLeavesNothing) {
  Write("proc/self/cgroup", "0::/\n");
  Write("sys/fs/cgroup/memory.max", "1048576\n");
  Write("sys/fs/cgroup/memory.current", "2097152\n");
  EXPECT_EQ(Available(), 0);
}

TEST_F(AvailableMemoryTest, AMachineThatTellsNothingLimitsNothing) {
  std::filesystem::remove_all(root_);
  EXPECT_EQ(Available(), std::numeric_limits<int64_t>::max());
}

}  // namespace
}  // namespace portolan
