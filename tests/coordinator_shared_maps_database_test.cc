#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "cluster/coordinator/shared_maps_database.h"
#include "gtest/gtest.h"

namespace portolan {
namespace {

class SharedMapsDatabaseTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::unique_ptr<SharedMapsDatabase> Open() {
    auto opened = SharedMapsDatabase::Open(path_, notice_);
    EXPECT_TRUE(opened.ok()) << opened.status();
    return opened.ok() ? *std::move(opened) : nullptr;
  }

  const std::filesystem::path dir_ =
      std::filesystem::path(testing::TempDir()) /
      testing::UnitTest::GetInstance()->current_test_info()->name();
  const std::string path_ = (dir_ / "history.db").string();
  const SharedMapsKey store_ = {.fingerprint = "abc", .format = 2};
  std::string notice_;
};

TEST_F(SharedMapsDatabaseTest, RowsOutliveTheProcessAndRemovedOnesDoNot) {
  const std::string binary("k\0y", 3);
  const std::vector<SharedMaps::Row> rows = {
      {.id = 5, .key = binary, .map = "a", .usefulness = 3},
      {.id = 6, .key = "k2", .map = "b"}};
  ASSERT_TRUE(Open()->Apply(store_, rows, {}).ok());
  const std::vector<uint64_t> gone = {6};
  ASSERT_TRUE(Open()->Apply(store_, {}, gone).ok());

  const auto loaded = Open()->Load().value();

  ASSERT_EQ(loaded.size(), 1u);
  EXPECT_EQ(loaded[0].store, store_);
  EXPECT_EQ(loaded[0].row.id, 5u);
  EXPECT_EQ(loaded[0].row.key, binary);
  EXPECT_EQ(loaded[0].row.usefulness, 3);
  EXPECT_EQ(notice_, "");
}

TEST_F(SharedMapsDatabaseTest, ADamagedFileIsSetAsideAndSaid) {
  std::ofstream(path_) << std::string(8192, 'x');

  const auto loaded = Open()->Load().value();

  EXPECT_TRUE(loaded.empty());
  EXPECT_NE(notice_.find(path_ + ".damaged"), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(path_ + ".damaged"));
}

TEST_F(SharedMapsDatabaseTest, AFolderThatIsNotThereIsAnError) {
  std::filesystem::remove_all(dir_);

  EXPECT_FALSE(SharedMapsDatabase::Open(path_, notice_).ok());
}

}  // namespace
}  // namespace portolan
