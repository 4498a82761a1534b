#include <gtest/gtest.h>

#include <string>

#include "clients/cc/batch.h"

namespace portolan {
namespace {

TEST(BatchTest, AShortKeyIsPrefixAndCustomId) {
  EXPECT_EQ(BatchKey("p-", "c1", 1), "p-c1");
  EXPECT_EQ(BatchKey("p-", "c1", 3), "p-c1#3");
  const std::string longest(126, 'a');
  EXPECT_EQ(BatchKey("p-", longest, 1), "p-" + longest);
}

TEST(BatchTest, ALongKeyFitsAndTellsRequestsAndAttemptsApart) {
  const std::string id(256, 'a');
  const std::string key = BatchKey("p-", id + "1", 1);

  EXPECT_EQ(key.size(), 128u);
  EXPECT_EQ(key, BatchKey("p-", id + "1", 1));
  EXPECT_NE(key, BatchKey("p-", id + "2", 1));
  EXPECT_NE(key, BatchKey("p-", id + "1", 2));
  EXPECT_EQ(BatchKey(std::string(500, 'p'), id, 12).size(), 128u);
}

TEST(BatchTest, ALongKeyCutsNoCharacterInTwo) {
  std::string id;
  for (int i = 0; i < 80; ++i) id += "\u00e9";

  const std::string head = BatchKey("", id, 1).substr(0, 112);
  EXPECT_EQ(head.substr(0, 110), id.substr(0, 110));
  EXPECT_EQ(head[110], '~');
}

}  // namespace
}  // namespace portolan
