#include "runtime/model/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::string kSource = PORTOLAN_SOURCE_DIR;

class BundledTokenizerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load(kSource + "/models/tiny-moe");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(BundledTokenizerTest, FindsSpecialTokensInTheText) {
  const auto ids = tokenizer_->Encode("Hello world<|im_end|>", false);

  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(*ids, ElementsAre(39, 523, 78, 1471, 4095));
  EXPECT_EQ(tokenizer_->Decode(*ids, true), "Hello world");
  EXPECT_TRUE(tokenizer_->IsSpecial(4095));
  EXPECT_FALSE(tokenizer_->IsSpecial(39));
  EXPECT_EQ(tokenizer_->TokenToId("<|im_end|>"), 4095);
  EXPECT_EQ(tokenizer_->vocab_size(), 4096);
}

TEST_F(BundledTokenizerTest, RefusesInvalidUtf8AndNamesTheOffset) {
  const auto ids = tokenizer_->Encode("abc\xC3(", false);

  ASSERT_TRUE(absl::IsInvalidArgument(ids.status()));
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("offset 3"));
}

TEST(TokenizerTest, SaysWhichFilesADirectoryLacks) {
  const auto tokenizer = Tokenizer::Load(kSource + "/runtime");

  EXPECT_TRUE(absl::IsNotFound(tokenizer.status()));
}

}  // namespace
}  // namespace portolan
