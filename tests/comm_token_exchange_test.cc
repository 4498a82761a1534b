#include <gtest/gtest.h>

#include <vector>

#include "comm/local_world.h"
#include "comm/token_exchange.h"
#include "tests/exchange_contract.h"

namespace portolan {
namespace {

using testing::CheckAllCases;

class TokenExchangeTest : public ::testing::TestWithParam<int> {};

TEST_P(TokenExchangeTest, GivesTheReferenceOutputInEveryCase) {
  const absl::Status status = RunLocalWorld(GetParam(), CheckAllCases);

  EXPECT_TRUE(status.ok()) << status;
}

INSTANTIATE_TEST_SUITE_P(Worlds, TokenExchangeTest,
                         ::testing::Values(1, 2, 3, 5));

}  // namespace
}  // namespace portolan
