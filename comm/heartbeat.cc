#include "comm/heartbeat.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace portolan {

// What travels between hosts. Lost ones are made up for by the next beat, and
// last words are sent three times.
struct Heartbeat::Datagram {
  static constexpr uint32_t kMagic = 0x42545250;  // "PRTB"
  enum Kind : uint32_t { kBeat = 0, kLeft = 1, kFailed = 2, kLost = 3 };

  uint32_t magic = kMagic;
  uint32_t kind = kBeat;
  uint64_t job = 0;
  int32_t sender = 0;
  int32_t about = 0;  // kLost: the lost rank
  int32_t code = 0;   // kFailed, kLost: absl::StatusCode
  char reason[480] = {};
};

namespace {

constexpr int kLastWords = 3;

void Copy(absl::string_view text, char (&to)[480]) {
  const size_t size = std::min(text.size(), sizeof(to) - 1);
  std::memcpy(to, text.data(), size);
  to[size] = 0;
}

std::string Read(const char (&text)[480]) {
  return std::string(text, strnlen(text, sizeof(text)));
}

// -1 where the kernel does not offer it: then silence alone tells.
int OpenPid(int32_t pid) {
  return static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
}

uint64_t PidNamespace() {
  struct stat info;
  return stat("/proc/self/ns/pid", &info) == 0 ? info.st_ino : 0;
}

void ListAddresses(LifeAddress& to) {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return;
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    const bool usable =
        one->ifa_addr != nullptr && one->ifa_addr->sa_family == AF_INET &&
        (one->ifa_flags & IFF_UP) != 0 && (one->ifa_flags & IFF_LOOPBACK) == 0;
    if (!usable || to.num_addresses == LifeAddress::kMaxAddresses) continue;
    const auto* address = reinterpret_cast<const sockaddr_in*>(one->ifa_addr);
    to.ipv4[to.num_addresses++] = address->sin_addr.s_addr;
  }
  freeifaddrs(all);
}

}  // namespace

Heartbeat::Endpoint Heartbeat::OpenEndpoint(bool other_hosts) {
  Endpoint endpoint;
  endpoint.address.pid = getpid();
  endpoint.address.pid_namespace = PidNamespace();
  if (!other_hosts) return endpoint;
  endpoint.socket =
      socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  sockaddr_in any = {};
  any.sin_family = AF_INET;
  socklen_t size = sizeof(any);
  auto* address = reinterpret_cast<sockaddr*>(&any);
  if (endpoint.socket < 0 || bind(endpoint.socket, address, size) != 0 ||
      getsockname(endpoint.socket, address, &size) != 0) {
    return endpoint;  // never heard: watched by deadlines alone
  }
  endpoint.address.port = any.sin_port;
  ListAddresses(endpoint.address);
  return endpoint;
}

Heartbeat::Heartbeat(Rank self, LifeCell& own, std::vector<LifePeer> peers,
                     Endpoint endpoint, uint64_t job, HeartbeatOptions options)
    : self_(self),
      own_(own),
      endpoint_(std::move(endpoint)),
      job_(job),
      options_(options),
      stop_event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      silence_(peers.size(), options.silence) {
  for (LifePeer& peer : peers) {
    // A pid means something only in its own namespace.
    const bool visible =
        peer.cell != nullptr &&
        peer.address.pid_namespace == endpoint_.address.pid_namespace;
    Watched watched{.peer = peer};
    if (visible) {
      watched.pidfd = OpenPid(peer.address.pid);
      watched.ended_early = watched.pidfd < 0 && errno == ESRCH;
    }
    watched_.push_back(watched);
  }
}

void Heartbeat::Start(std::function<void(const LostPeer&)> on_loss) {
  on_loss_ = std::move(on_loss);
  thread_ = std::thread([this] { Work(); });
}

Heartbeat::~Heartbeat() {
  stopping_.store(true);
  const uint64_t one = 1;
  (void)!write(stop_event_, &one, sizeof(one));
  if (thread_.joinable()) thread_.join();
  for (const Watched& watched : watched_) {
    if (watched.pidfd >= 0) close(watched.pidfd);
  }
  if (endpoint_.socket >= 0) close(endpoint_.socket);
  close(stop_event_);
}

std::optional<LostPeer> Heartbeat::lost() const {
  if (!any_lost_.load()) return std::nullopt;
  MutexLock lock(mu_);
  return lost_;
}

void Heartbeat::Announce(const absl::Status& status) {
  const std::string reason(status.message());
  Copy(reason, own_.reason);
  own_.code = static_cast<int32_t>(status.code());
  own_.state.store(status.ok() ? LifeState::kLeft : LifeState::kFailed);
  Datagram datagram;
  datagram.kind = status.ok() ? Datagram::kLeft : Datagram::kFailed;
  datagram.code = own_.code;
  Copy(reason, datagram.reason);
  for (int i = 0; i < kLastWords; ++i) Send(datagram);
}

absl::Duration Heartbeat::Now() const {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

void Heartbeat::Work() {
  absl::Duration next_beat = Now();
  while (!stopping_.load()) {
    if (Now() >= next_beat) {
      Beat();
      next_beat = Now() + options_.beat;
    }
    Sleep(next_beat - Now());
    ReadPidfds();
    for (size_t i = 0; i < watched_.size(); ++i) ReadCell(i);
    ReadDatagrams();
    if (const auto silent = silence_.FindSilent(Now())) {
      Lose(*silent,
           absl::StrCat("no sign of life for ",
                        absl::FormatDuration(options_.silence)),
           absl::StatusCode::kAborted, /*tell_others=*/false);
    }
  }
}

void Heartbeat::Beat() {
  own_.beats.fetch_add(1);
  if (own_.state.load() == LifeState::kRunning) Send(Datagram());
}

// Until the next beat, or until a process ends or a datagram comes.
void Heartbeat::Sleep(absl::Duration timeout) {
  std::vector<pollfd> fds = {
      {.fd = stop_event_, .events = POLLIN, .revents = 0}};
  fds.push_back({.fd = endpoint_.socket, .events = POLLIN, .revents = 0});
  for (const Watched& watched : watched_) {
    const int fd = watched.gone ? -1 : watched.pidfd;
    fds.push_back({.fd = fd, .events = POLLIN, .revents = 0});
  }
  const int64_t ms =
      absl::ToInt64Milliseconds(std::max(timeout, absl::Milliseconds(1)));
  poll(fds.data(), fds.size(), static_cast<int>(ms));
}

void Heartbeat::ReadCell(size_t index) {
  Watched& watched = watched_[index];
  if (watched.gone || watched.peer.cell == nullptr) return;
  const LifeCell& cell = *watched.peer.cell;
  const uint64_t beats = cell.beats.load();
  if (beats != watched.beats_seen) silence_.Heard(index, Now());
  watched.beats_seen = beats;
  switch (cell.state.load()) {
    case LifeState::kRunning:
      break;
    case LifeState::kLeft:
      watched.gone = true;
      silence_.Forget(index);
      break;
    case LifeState::kFailed:
      watched.gone = true;
      ReadPidfds();
      Lose(index, absl::StrCat("it failed: ", Read(cell.reason)),
           static_cast<absl::StatusCode>(cell.code), /*tell_others=*/false);
      break;
  }
}

// Who died comes before who failed because of that: also to be called before a
// failure that has been read is taken for the first one.
void Heartbeat::ReadPidfds() {
  for (size_t i = 0; i < watched_.size(); ++i) ReadPidfd(i);
}

void Heartbeat::ReadPidfd(size_t index) {
  const Watched& watched = watched_[index];
  if (watched.gone || (watched.pidfd < 0 && !watched.ended_early)) return;
  pollfd fd = {.fd = watched.pidfd, .events = POLLIN, .revents = 0};
  if (!watched.ended_early && poll(&fd, 1, 0) <= 0) return;
  ReadCell(index);  // it may have said good-bye just before it ended
  if (!watched.gone)
    Lose(index, "its process ended", absl::StatusCode::kAborted,
         /*tell_others=*/true);
}

void Heartbeat::ReadDatagrams() {
  if (endpoint_.socket < 0) return;
  Datagram datagram;
  while (recv(endpoint_.socket, &datagram, sizeof(datagram), 0) ==
         static_cast<ssize_t>(sizeof(datagram))) {
    if (datagram.magic == Datagram::kMagic && datagram.job == job_) {
      Handle(datagram);
    }
  }
}

void Heartbeat::Handle(const Datagram& datagram) {
  const auto index_of = [&](int32_t rank) {
    size_t i = 0;
    while (i < watched_.size() && ToIndex(watched_[i].peer.rank) != rank) ++i;
    return i;
  };
  const size_t sender = index_of(datagram.sender);
  if (sender == watched_.size() || watched_[sender].gone) return;
  silence_.Heard(sender, Now());
  if (datagram.kind == Datagram::kLeft) {
    watched_[sender].gone = true;
    silence_.Forget(sender);
  } else if (datagram.kind == Datagram::kFailed) {
    watched_[sender].gone = true;
    ReadPidfds();
    Lose(sender, absl::StrCat("it failed: ", Read(datagram.reason)),
         static_cast<absl::StatusCode>(datagram.code), /*tell_others=*/false);
  } else if (datagram.kind == Datagram::kLost) {
    const size_t about = index_of(datagram.about);
    if (about == watched_.size() || watched_[about].gone) return;
    Lose(about, Read(datagram.reason),
         static_cast<absl::StatusCode>(datagram.code), /*tell_others=*/false);
  }
}

void Heartbeat::Lose(size_t index, const std::string& how,
                     absl::StatusCode code, bool tell_others) {
  Watched& watched = watched_[index];
  watched.gone = true;
  silence_.Forget(index);
  if (tell_others) {
    Datagram datagram;
    datagram.kind = Datagram::kLost;
    datagram.about = ToIndex(watched.peer.rank);
    datagram.code = static_cast<int32_t>(code);
    Copy(how, datagram.reason);
    for (int i = 0; i < kLastWords; ++i) Send(datagram);
  }
  if (any_lost_.load()) return;
  const LostPeer lost{watched.peer.rank, how, code};
  {
    MutexLock lock(mu_);
    lost_ = lost;
  }
  any_lost_.store(true);
  if (on_loss_) on_loss_(lost);
}

// To all ranks of other hosts, at each of their addresses.
void Heartbeat::Send(const Datagram& datagram) {
  if (endpoint_.socket < 0) return;
  Datagram signed_datagram = datagram;
  signed_datagram.job = job_;
  signed_datagram.sender = ToIndex(self_);
  for (const Watched& watched : watched_) {
    const LifeAddress& to = watched.peer.address;
    if (watched.peer.cell != nullptr || to.port == 0) continue;
    for (int i = 0; i < to.num_addresses; ++i) {
      sockaddr_in address = {};
      address.sin_family = AF_INET;
      address.sin_port = to.port;
      address.sin_addr.s_addr = to.ipv4[i];
      sendto(endpoint_.socket, &signed_datagram, sizeof(signed_datagram), 0,
             reinterpret_cast<const sockaddr*>(&address), sizeof(address));
    }
  }
}

}  // namespace portolan
