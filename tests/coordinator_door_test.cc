#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "cluster/coordinator/mailbox.h"
#include "cluster/coordinator/server/door.h"
#include "runtime/base/steady_now.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kGreeting(
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33);

// What the door did, in order: "in: BYTES" or "ADDRESS CAUSE".
class DoorTest : public ::testing::Test {
 protected:
  void Open(Door::Options options = {}) {
    options.listen = "127.0.0.1:0";
    auto opened = Door::Open(
        options,
        [this](int, Socket connection) {
          std::array<char, 64> bytes = {};
          const ssize_t count =
              recv(connection.fd(), bytes.data(), bytes.size(), MSG_DONTWAIT);
          events_.Post("in: " +
                       std::string(bytes.data(),
                                   count > 0 ? static_cast<size_t>(count) : 0));
        },
        [this](std::string_view address, std::string_view cause,
               std::string_view) {
          events_.Post(std::string(address) + " " + std::string(cause));
        });
    ASSERT_TRUE(opened.ok()) << opened.status();
    door_ = *std::move(opened);
  }

  Socket Connect() {
    Socket socket(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(door_->port()));
    EXPECT_EQ(connect(socket.fd(), reinterpret_cast<sockaddr*>(&address),
                      sizeof(address)),
              0);
    return socket;
  }
  static void Say(const Socket& socket, const std::string& bytes) {
    EXPECT_EQ(send(socket.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  // Waits until the other side closes.
  static void WaitForEnd(const Socket& socket) {
    char byte = 0;
    while (recv(socket.fd(), &byte, 1, 0) > 0) {
    }
  }
  std::vector<std::string> NextEvents() {
    std::vector<std::string> events;
    const absl::Time end = SteadyNow() + absl::Seconds(60);
    // Of what was taken already a wake-up may be left.
    while (events.empty() && SteadyNow() < end) {
      EXPECT_TRUE(events_.Take(end - SteadyNow(), events));
    }
    return events;
  }

  Mailbox<std::string> events_;
  std::unique_ptr<Door> door_;
};

TEST_F(DoorTest, AGreetingGoesOnUnreadHoweverItComes) {
  Open();
  const Socket client = Connect();
  Say(client, kGreeting.substr(0, 10));
  Say(client, kGreeting.substr(10));

  EXPECT_THAT(NextEvents(), ElementsAre("in: " + kGreeting));
}

TEST_F(DoorTest, NonsenseIsRefusedByAddress) {
  Open();
  const Socket client = Connect();
  Say(client, "GET / HTTP/1.1\r\n\r\n");

  EXPECT_THAT(NextEvents(), ElementsAre("ipv4:127.0.0.1 nonsense"));
  std::array<char, 9> answer = {};
  EXPECT_EQ(recv(client.fd(), answer.data(), answer.size(), MSG_WAITALL), 9)
      << "a client of TLS would wait for an answer";
  EXPECT_EQ(answer[3], 4) << "a SETTINGS frame";
  WaitForEnd(client);
}

TEST_F(DoorTest, SilenceEndsAfterAWhile) {
  Open({.patience = absl::Milliseconds(10)});
  const Socket mute = Connect();
  EXPECT_THAT(NextEvents(), ElementsAre("ipv4:127.0.0.1 silent connection"));
  const Socket broken_off = Connect();
  Say(broken_off, kGreeting.substr(0, 20));
  EXPECT_THAT(NextEvents(), ElementsAre("ipv4:127.0.0.1 silent connection"));
  WaitForEnd(mute);
  WaitForEnd(broken_off);
}

TEST_F(DoorTest, ACrowdOfSilentOnesKeepsNobodyOut) {
  Open({.max_waiting = 2});
  std::vector<Socket> crowd;
  for (int i = 0; i < 3; ++i) crowd.push_back(Connect());
  EXPECT_THAT(NextEvents(), ElementsAre("ipv4:127.0.0.1 silent connection"));
  WaitForEnd(crowd.front());

  const Socket client = Connect();
  EXPECT_THAT(NextEvents(), ElementsAre("ipv4:127.0.0.1 silent connection"));
  Say(client, kGreeting);
  EXPECT_THAT(NextEvents(), ElementsAre("in: " + kGreeting));
}

TEST_F(DoorTest, ACheckOfThePortIsNoNews) {
  Open();
  { const Socket check = Connect(); }
  const Socket client = Connect();
  Say(client, kGreeting);

  EXPECT_THAT(NextEvents(), ElementsAre("in: " + kGreeting));
}

TEST_F(DoorTest, ATakenPortIsToldWithItsFlag) {
  Open();
  const auto second =
      Door::Open({.listen = "127.0.0.1:" + std::to_string(door_->port())},
                 nullptr, nullptr);

  ASSERT_TRUE(absl::IsUnavailable(second.status()));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("--listen"));
}

}  // namespace
}  // namespace portolan
