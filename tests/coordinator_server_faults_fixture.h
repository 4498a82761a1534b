#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <memory>
#include <string>

#include "tests/coordinator_server_fixture.h"

namespace portolan {

// A TCP connection to an IPv4 address of this machine, "127.0.0.1:<port>".
inline int ConnectTo(const std::string& address) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(
      static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  return fd;
}

// The coordinator of CoordinatorTest where something goes wrong: with ranks,
// clients, limits or the disk, each in a file of its own.
class CoordinatorFaultsTest : public CoordinatorTest {
 protected:
  // The registration of a process that holds `assign` with its tokens
  // [held_from, next).
  static v1::Register Holding(const v1::Assign& assign, uint32_t held_from,
                              uint32_t next, uint64_t incarnation = 1) {
    v1::Register registration = FakeRank::Registration(0, incarnation);
    v1::RunningRequest& running = *registration.add_running();
    running.set_request_id(assign.request_id());
    running.set_attempt(assign.attempt());
    running.set_held_from(held_from);
    running.set_next_offset(next);
    return registration;
  }

  // Attaches a new process of the rank as soon as the old one is given up.
  std::unique_ptr<FakeRank> Successor(uint64_t incarnation) {
    const absl::Time deadline = absl::Now() + kTestPatience;
    while (absl::Now() < deadline) {
      auto rank = NewRank();
      if (rank->Attach(FakeRank::Registration(0, incarnation)).heartbeat_ms() >
          0) {
        return rank;
      }
    }
    return nullptr;
  }
};

}  // namespace portolan
