#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "comm/peer_watch.h"
#include "comm/silence.h"
#include "runtime/base/mutex.h"

namespace portolan {

enum class LifeState : uint32_t { kRunning = 0, kLeft = 1, kFailed = 2 };

// What a rank shows to the ranks of its host, in memory that they share.
// Zero-filled memory is a rank that has not shown itself yet.
struct LifeCell {
  alignas(64) std::atomic<uint64_t> beats;
  std::atomic<LifeState> state;
  // Set before kFailed.
  int32_t code;      // absl::StatusCode
  char reason[480];  // NUL-terminated
};

// Where the heartbeats of a rank go, exchanged at the start.
struct LifeAddress {
  static constexpr int kMaxAddresses = 4;

  int32_t pid = 0;
  uint64_t pid_namespace = 0;
  int32_t num_addresses = 0;
  uint32_t ipv4[kMaxAddresses] = {};  // network byte order
  uint16_t port = 0;                  // network byte order; 0: no socket
};

struct LifePeer {
  Rank rank{};
  LifeAddress address;
  LifeCell* cell = nullptr;  // null: a rank of another host
};

struct HeartbeatOptions {
  absl::Duration beat = absl::Milliseconds(250);
  absl::Duration silence = absl::Seconds(2);
};

// Tells the others that this rank lives, and notices who does not: a thread of
// its own that neither computes nor reads files, so a rank that loads or
// computes for minutes is alive. Within a host beats are counters in shared
// memory, and the end of a process is seen at once (pidfd); between hosts they
// are UDP datagrams, and whoever sees a process of its host end tells the other
// hosts.
//
// Thread-safe.
class Heartbeat final : public PeerWatch {
 public:
  // A socket for the beats between hosts, and this process's address.
  struct Endpoint {
    int socket = -1;  // -1: all ranks are on this host, or no network
    LifeAddress address;
  };
  static Endpoint OpenEndpoint(bool other_hosts);

  // `job` tells datagrams of this job from strangers. `own` and the peers'
  // cells outlive the object, which takes over the socket.
  Heartbeat(Rank self, LifeCell& own, std::vector<LifePeer> peers,
            Endpoint endpoint, uint64_t job, HeartbeatOptions options);
  ~Heartbeat() override;

  // Starts beating and watching; once. `on_loss` is called for the first lost
  // peer, on the thread of the heartbeat.
  void Start(std::function<void(const LostPeer&)> on_loss = {});

  std::optional<LostPeer> lost() const override ABSL_LOCKS_EXCLUDED(mu_);

  // The last word of this rank: it has left in order (OK), or failed. The beats
  // end.
  void Announce(const absl::Status& status);

 private:
  struct Datagram;
  struct Watched {
    LifePeer peer;
    int pidfd = -1;
    bool ended_early = false;  // before it could be watched
    uint64_t beats_seen = 0;
    bool gone = false;  // left or lost
  };

  void Work();
  void Beat();
  void Sleep(absl::Duration timeout);
  void ReadPidfds();
  void ReadPidfd(size_t index);
  void ReadCell(size_t index);
  void ReadDatagrams();
  void Handle(const Datagram& datagram);
  void Lose(size_t index, const std::string& how, absl::StatusCode code,
            bool tell_others);
  void Send(const Datagram& datagram);
  absl::Duration Now() const;

  const Rank self_;
  LifeCell& own_;
  const Endpoint endpoint_;
  const uint64_t job_;
  const HeartbeatOptions options_;
  std::function<void(const LostPeer&)> on_loss_;
  int stop_event_ = -1;

  // On the heartbeat's thread only, but for the peers' addresses.
  std::vector<Watched> watched_;
  SilenceWatch silence_;

  std::atomic<bool> stopping_{false};
  std::atomic<bool> any_lost_{false};
  mutable Mutex mu_;
  std::optional<LostPeer> lost_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;
};

}  // namespace portolan
