#include <gtest/gtest.h>

#include <string>

#include "cluster/coordinator/greeting.h"

namespace portolan {
namespace {

const std::string kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const std::string kSettings("\0\0\x0c\4\0\0\0\0\0", 9);
const std::string kHello("\x16\3\1\2\0\1\0\1\xfc", 9);

TEST(GreetingTest, AClientOfGrpcIsWelcomeOnceItsSettingsBegin) {
  const std::string bytes = kPreface + kSettings;
  ASSERT_EQ(bytes.size(), kGreetingBytes);

  for (size_t i = 0; i < bytes.size(); ++i) {
    EXPECT_EQ(JudgeGreeting(bytes.substr(0, i), /*tls=*/false), Greeting::kMore)
        << i;
  }
  EXPECT_EQ(JudgeGreeting(bytes, /*tls=*/false), Greeting::kWelcome);
  EXPECT_EQ(JudgeGreeting(bytes + "more", /*tls=*/false), Greeting::kWelcome);
}

TEST(GreetingTest, NonsenseIsKnownByItsFirstWrongByte) {
  for (size_t i = 0; i < kPreface.size(); ++i) {
    std::string wrong = kPreface.substr(0, i + 1);
    wrong[i] = static_cast<char>(wrong[i] ^ 1);
    EXPECT_EQ(JudgeGreeting(wrong, /*tls=*/false), Greeting::kNonsense) << i;
  }
  EXPECT_EQ(JudgeGreeting("GET / HTTP/1.1\r\n", /*tls=*/false),
            Greeting::kNonsense);
  EXPECT_EQ(JudgeGreeting(kHello, /*tls=*/false), Greeting::kNonsense);
}

TEST(GreetingTest, AFirstFrameThatIsNoSettingsIsNonsense) {
  // Length, type, flags (an acknowledgement), stream.
  for (const size_t wrong : {2, 3, 4, 5, 8}) {
    std::string settings = kSettings;
    settings[wrong] = static_cast<char>(settings[wrong] ^ 1);
    EXPECT_EQ(JudgeGreeting(kPreface + settings, /*tls=*/false),
              Greeting::kNonsense)
        << wrong;
  }
}

TEST(GreetingTest, WithTlsAClientHelloIsWelcomeAndNothingElse) {
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(JudgeGreeting(kHello.substr(0, i), /*tls=*/true), Greeting::kMore)
        << i;
  }
  EXPECT_EQ(JudgeGreeting(kHello, /*tls=*/true), Greeting::kWelcome);
  EXPECT_EQ(JudgeGreeting(kPreface + kSettings, /*tls=*/true),
            Greeting::kNonsense);
  // A record that is no handshake, and a handshake that is no hello.
  EXPECT_EQ(JudgeGreeting("\x17\3\1", /*tls=*/true), Greeting::kNonsense);
  EXPECT_EQ(JudgeGreeting(std::string("\x16\3\1\2\0\2", 6), /*tls=*/true),
            Greeting::kNonsense);
}

}  // namespace
}  // namespace portolan
