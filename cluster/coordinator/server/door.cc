#include "cluster/coordinator/server/door.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/coordinator/greeting.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/steady_now.h"

namespace portolan {
namespace {

constexpr int kBacklog = 1024;
// How long new connections wait where file descriptors are used up.
constexpr absl::Duration kNoFilesPause = absl::Milliseconds(100);
// What events are of: the end, a listener, else a connection that waits.
constexpr uint64_t kStopId = 0;
constexpr uint64_t kFirstListenerId = 1;

// An empty SETTINGS frame and GOAWAY for PROTOCOL_ERROR: what a server of
// HTTP/2 says to nonsense (RFC 9113, 3.4). A client of TLS sees by it that
// nobody here speaks TLS.
constexpr std::string_view kGoAway(
    "\0\0\0\4\0\0\0\0\0"
    "\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\1",
    26);
// Of nonsense that is read so that the peer gets the answer and no reset.
constexpr int kMaxReads = 16;

int Port(const sockaddr_storage& address) {
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

// In gRPC's words, without the port.
std::string NameOf(const sockaddr_storage& address) {
  std::array<char, INET6_ADDRSTRLEN> text = {};
  if (address.ss_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr,
              text.data(), text.size());
    return absl::StrCat("ipv4:", text.data());
  }
  const in6_addr& ip = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  if (IN6_IS_ADDR_V4MAPPED(&ip)) {
    inet_ntop(AF_INET, &ip.s6_addr[12], text.data(), text.size());
    return absl::StrCat("ipv4:", text.data());
  }
  inet_ntop(AF_INET6, &ip, text.data(), text.size());
  return absl::StrCat("ipv6:[", text.data(), "]");
}

void Watch(int epoll, int operation, int fd, uint32_t events, uint64_t id) {
  epoll_event event = {};
  event.events = events;
  event.data.u64 = id;
  (void)epoll_ctl(epoll, operation, fd, &event);
}

void SetOption(int fd, int level, int name) {
  const int on = 1;
  (void)setsockopt(fd, level, name, &on, sizeof(on));
}

void SayGoodbye(int fd, bool tls) {
  if (!tls) (void)send(fd, kGoAway.data(), kGoAway.size(), MSG_NOSIGNAL);
  std::array<char, 4096> ignored;
  for (int i = 0; i < kMaxReads; ++i) {
    if (recv(fd, ignored.data(), ignored.size(), MSG_DONTWAIT) <= 0) return;
  }
}

}  // namespace

Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

int Socket::Release() { return std::exchange(fd_, -1); }

absl::StatusOr<std::unique_ptr<Door>> Door::Open(const Options& options,
                                                 Enter enter, Refuse refuse) {
  std::unique_ptr<Door> door(
      new Door(options, std::move(enter), std::move(refuse)));
  if (absl::Status status = door->Listen(); !status.ok()) {
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", options.listen, ": ", status.message(),
        "; is it in use, or no address of this machine? (--listen)"));
  }
  door->thread_ = std::thread([raw = door.get()] { raw->Loop(); });
  return door;
}

Door::Door(const Options& options, Enter enter, Refuse refuse)
    : options_(options),
      enter_(std::move(enter)),
      refuse_(std::move(refuse)),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      stop_(eventfd(0, EFD_CLOEXEC)) {}

Door::~Door() {
  if (!thread_.joinable()) return;
  (void)eventfd_write(stop_.fd(), 1);
  thread_.join();
}

// A name may be several addresses (localhost is two); one must be free, and the
// others take its port where they can.
absl::Status Door::Listen() {
  const size_t colon = options_.listen.rfind(':');
  std::string host = options_.listen.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const std::string service = options_.listen.substr(colon + 1);
  if (const int error = getaddrinfo(host.empty() ? nullptr : host.c_str(),
                                    service.c_str(), &hints, &found);
      error != 0) {
    return absl::UnavailableError(gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> all(found,
                                                               &freeaddrinfo);
  absl::Status status = absl::UnavailableError("it has no address");
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    absl::Status tried = ListenOn(*one);
    if (!tried.ok()) status = std::move(tried);
  }
  if (listeners_.empty()) return status;
  next_id_ = kFirstListenerId + listeners_.size();
  Watch(epoll_.fd(), EPOLL_CTL_ADD, stop_.fd(), EPOLLIN, kStopId);
  for (size_t i = 0; i < listeners_.size(); ++i) {
    Watch(epoll_.fd(), EPOLL_CTL_ADD, listeners_[i].fd(), EPOLLIN,
          kFirstListenerId + i);
  }
  return absl::OkStatus();
}

absl::Status Door::ListenOn(const addrinfo& where) {
  sockaddr_storage address = {};
  std::memcpy(&address, where.ai_addr, where.ai_addrlen);
  if (port_ != 0) {
    const auto port = htons(static_cast<uint16_t>(port_));
    if (address.ss_family == AF_INET6) {
      reinterpret_cast<sockaddr_in6&>(address).sin6_port = port;
    } else {
      reinterpret_cast<sockaddr_in&>(address).sin_port = port;
    }
  }
  Socket socket(
      ::socket(where.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  SetOption(socket.fd(), SOL_SOCKET, SO_REUSEADDR);
  auto* const raw = reinterpret_cast<sockaddr*>(&address);
  socklen_t length = sizeof(address);
  if (socket.fd() < 0 || bind(socket.fd(), raw, where.ai_addrlen) != 0 ||
      ::listen(socket.fd(), kBacklog) != 0 ||
      getsockname(socket.fd(), raw, &length) != 0) {
    return absl::UnavailableError(std::strerror(errno));
  }
  port_ = Port(address);
  listeners_.push_back(std::move(socket));
  return absl::OkStatus();
}

void Door::Loop() {
  std::array<epoll_event, 64> events = {};
  while (true) {
    const absl::Duration wait = UntilNextDeadline(SteadyNow());
    const int timeout = wait == absl::InfiniteDuration()
                            ? -1
                            : static_cast<int>(absl::ToInt64Milliseconds(
                                  wait + absl::Milliseconds(1)));
    const int count =
        epoll_wait(epoll_.fd(), events.data(), events.size(), timeout);
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      const uint64_t id = event.data.u64;
      if (id == kStopId) return;
      if (id < kFirstListenerId + listeners_.size()) {
        Accept(listeners_[id - kFirstListenerId].fd());
      } else if (const auto waiting = waiting_.find(id);
                 waiting != waiting_.end()) {
        Look(waiting, (event.events & (EPOLLRDHUP | EPOLLHUP)) != 0);
      }
    }
    EndTheSilent(SteadyNow());
  }
}

absl::Duration Door::UntilNextDeadline(absl::Time now) const {
  absl::Time next = accept_again_;
  if (!waiting_.empty()) {
    next = std::min(next, waiting_.begin()->second.deadline);
  }
  return std::max(next - now, absl::ZeroDuration());
}

void Door::Accept(int listener) {
  // Of a crowd a part at a time: those who are in come first.
  for (int i = 0; i < 64; ++i) {
    sockaddr_storage address = {};
    socklen_t length = sizeof(address);
    Socket socket(accept4(listener, reinterpret_cast<sockaddr*>(&address),
                          &length, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (socket.fd() < 0) {
      if (errno == EMFILE || errno == ENFILE) OutOfFiles();
      if (errno != ECONNABORTED && errno != EINTR) return;
      continue;
    }
    SetOption(socket.fd(), IPPROTO_TCP, TCP_NODELAY);
    if (waiting_.size() >= options_.max_waiting) {
      RefuseAndClose(waiting_.begin(), "silent connection",
                     "it said nothing, and too many others wait");
    }
    const int fd = socket.fd();
    const uint64_t id = next_id_++;
    waiting_.emplace(id, Waiting{.socket = std::move(socket),
                                 .address = NameOf(address),
                                 .deadline = SteadyNow() + options_.patience});
    // Edge-triggered: bytes that were looked at stay where they are.
    Watch(epoll_.fd(), EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP | EPOLLET, id);
  }
}

void Door::OutOfFiles() {
  refuse_("", "no file descriptors",
          "the limit of open files is reached (ulimit -n); new connections "
          "wait");
  if (!waiting_.empty()) waiting_.erase(waiting_.begin());
  SetAccepting(false);
}

void Door::SetAccepting(bool accepting) {
  for (size_t i = 0; i < listeners_.size(); ++i) {
    Watch(epoll_.fd(), EPOLL_CTL_MOD, listeners_[i].fd(),
          accepting ? uint32_t{EPOLLIN} : 0, kFirstListenerId + i);
  }
  accept_again_ =
      accepting ? absl::InfiniteFuture() : SteadyNow() + kNoFilesPause;
}

void Door::Look(WaitingMap::iterator waiting, bool hung_up) {
  std::array<char, kGreetingBytes> bytes = {};
  const int fd = waiting->second.socket.fd();
  const ssize_t count =
      recv(fd, bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EINTR) && !hung_up) return;
  if (count <= 0) {
    // It came and went without a word, as a check of the port does.
    waiting_.erase(waiting);
    return;
  }
  switch (
      JudgeGreeting({bytes.data(), static_cast<size_t>(count)}, options_.tls)) {
    case Greeting::kMore:
      if (hung_up) waiting_.erase(waiting);
      return;
    case Greeting::kNonsense:
      SayGoodbye(fd, options_.tls);
      return RefuseAndClose(waiting, "nonsense",
                            options_.tls
                                ? "what came is not TLS; the client needs "
                                  "--tls-ca, or the port is another one's"
                                : "what came is not gRPC (HTTP/2 without TLS)");
    case Greeting::kWelcome:
      Socket socket = std::move(waiting->second.socket);
      (void)epoll_ctl(epoll_.fd(), EPOLL_CTL_DEL, fd, nullptr);
      waiting_.erase(waiting);
      enter_(listeners_.front().fd(), std::move(socket));
  }
}

void Door::RefuseAndClose(WaitingMap::iterator waiting, std::string_view cause,
                          std::string_view message) {
  refuse_(waiting->second.address, cause, message);
  waiting_.erase(waiting);
}

void Door::EndTheSilent(absl::Time now) {
  while (!waiting_.empty() && waiting_.begin()->second.deadline <= now) {
    RefuseAndClose(waiting_.begin(), "silent connection",
                   absl::StrCat("its first bytes did not come within ",
                                absl::FormatDuration(options_.patience)));
  }
  if (accept_again_ <= now) SetAccepting(true);
}

}  // namespace portolan
