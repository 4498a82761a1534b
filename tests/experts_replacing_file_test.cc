#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "experts/replacing_file.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class ReplacingFileTest : public ::testing::Test {
 protected:
  ReplacingFileTest() {
    std::string name = ::testing::TempDir() + "portolan_replacing_XXXXXX";
    dir_ = mkdtemp(name.data());
    path_ = dir_ + "/file";
  }
  ~ReplacingFileTest() override { std::filesystem::remove_all(dir_); }

  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(dir_)) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  }

  std::string Content() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in),
            std::istreambuf_iterator<char>()};
  }

  std::string dir_;
  std::string path_;
};

absl::Status Begin(ReplacingFile& file, std::string_view text) {
  if (absl::Status s = file.Create(); !s.ok()) return s;
  return file.Write(0, std::as_bytes(std::span(text)));
}

TEST_F(ReplacingFileTest, BearsTheNameOnlyOnceItIsWhole) {
  std::ofstream(path_) << "old";
  {
    ReplacingFile given_up(path_);
    ASSERT_TRUE(Begin(given_up, "half").ok());
    EXPECT_EQ(Content(), "old");
  }
  EXPECT_THAT(Names(), ElementsAre("file"));

  ReplacingFile file(path_);
  ASSERT_TRUE(Begin(file, "new").ok());
  ASSERT_TRUE(file.Commit().ok());

  EXPECT_EQ(Content(), "new");
  EXPECT_THAT(Names(), ElementsAre("file"));
}

TEST_F(ReplacingFileTest, TwoWritersOfOneNameDoNotShareAFile) {
  ReplacingFile first(path_);
  ReplacingFile second(path_);
  ASSERT_TRUE(Begin(first, "first").ok());
  ASSERT_TRUE(Begin(second, "2nd").ok());

  ASSERT_TRUE(second.Commit().ok());
  EXPECT_EQ(Content(), "2nd");
  ASSERT_TRUE(first.Commit().ok());

  EXPECT_EQ(Content(), "first");
  EXPECT_THAT(Names(), ElementsAre("file"));
}

TEST_F(ReplacingFileTest, RemovesWhatAKilledWriterLeftAndNothingElse) {
  const pid_t child = fork();
  if (child == 0) {
    ReplacingFile file(path_);
    if (Begin(file, "half").ok()) raise(SIGKILL);
    _exit(1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  std::ofstream(dir_ + "/file.tmp-mine") << "of somebody";
  std::ofstream(dir_ + "/other.tmp-1-0") << "of another file";
  const std::string left = absl::StrCat("file.tmp-", child, "-0");
  const std::string mine = absl::StrCat("file.tmp-", getpid(), "-0");
  ASSERT_THAT(Names(), ::testing::Contains(left));

  ReplacingFile living(path_);
  ASSERT_TRUE(Begin(living, "living").ok());
  EXPECT_THAT(Names(),
              UnorderedElementsAre("file.tmp-mine", "other.tmp-1-0", mine));
  ReplacingFile next(path_);
  ASSERT_TRUE(Begin(next, "next").ok());

  ASSERT_TRUE(living.Commit().ok());
  EXPECT_EQ(Content(), "living");
}

TEST_F(ReplacingFileTest, ErrorsNameTheFile) {
  ReplacingFile nowhere(dir_ + "/missing/file");

  const absl::Status status = nowhere.Create();

  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("/missing/file.tmp-"));
}

}  // namespace
}  // namespace portolan
