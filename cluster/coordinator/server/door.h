#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

struct addrinfo;

namespace portolan {

// A file descriptor that is closed when it goes.
class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  ~Socket();
  Socket(Socket&& other) noexcept : fd_(other.Release()) {}
  Socket& operator=(Socket&&) = delete;

  int fd() const { return fd_; }
  int Release();

 private:
  int fd_;
};

// Listens in gRPC's stead, for gRPC tells nobody of the connections that it
// refuses: every connection waits here until its first bytes are there
// (JudgeGreeting). A gRPC client's goes on to gRPC, unread; nonsense and
// silence end here, by name of their cause and address. Those that wait cost a
// file descriptor and a few bytes each, and are bounded in number.
//
// Thread-compatible. One thread of its own, on which the functions run.
class Door {
 public:
  struct Options {
    std::string listen = {};  // HOST:PORT; port 0: any free one
    bool tls = false;
    // The first bytes must come within it.
    absl::Duration patience = absl::Seconds(10);
    // When more wait, the one that waited longest goes.
    size_t max_waiting = 1000;
  };
  // Takes the connection over.
  using Enter = std::function<void(int listener, Socket connection)>;
  // `address` is "ipv4:1.2.3.4" or "ipv6:[::1]"; empty: not of a peer.
  using Refuse =
      std::function<void(std::string_view address, std::string_view cause,
                         std::string_view message)>;

  // Errors: kUnavailable (in use, or no address of this machine).
  static absl::StatusOr<std::unique_ptr<Door>> Open(const Options& options,
                                                    Enter enter, Refuse refuse);
  // Closes what waits.
  ~Door();

  int port() const { return port_; }

 private:
  struct Waiting {
    Socket socket;
    std::string address;
    absl::Time deadline;
  };
  using WaitingMap = std::map<uint64_t, Waiting>;  // by age

  Door(const Options& options, Enter enter, Refuse refuse);
  absl::Status Listen();
  absl::Status ListenOn(const addrinfo& where);
  void Loop();
  absl::Duration UntilNextDeadline(absl::Time now) const;
  void Accept(int listener);
  void OutOfFiles();
  void SetAccepting(bool accepting);
  void Look(WaitingMap::iterator waiting, bool hung_up);
  void RefuseAndClose(WaitingMap::iterator waiting, std::string_view cause,
                      std::string_view message);
  void EndTheSilent(absl::Time now);

  const Options options_;
  const Enter enter_;
  const Refuse refuse_;
  const Socket epoll_;
  const Socket stop_;
  std::vector<Socket> listeners_;
  int port_ = 0;

  // On the door's thread only.
  WaitingMap waiting_;
  uint64_t next_id_;
  absl::Time accept_again_ = absl::InfiniteFuture();

  std::thread thread_;
};

}  // namespace portolan
