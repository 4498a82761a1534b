#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "comm/peer_watch.h"
#include "comm/ring.h"
#include "comm/transport.h"

namespace portolan {

// A Transport through memory that all ranks share: one Ring per ordered pair of
// ranks, kept in the inbox of the reader. Messages larger than a ring pass
// through it in pieces. A waiting rank spins for some microseconds, then sleeps
// until a peer rings its Bell; it consults the PeerWatch meanwhile.
//
// LocalWorld runs it between threads, MpiSession between the processes of one
// host ("shm").
class RingTransport final : public Transport {
 public:
  struct Options {
    std::string name;
    std::vector<std::string> hosts;  // [world_size]
    size_t ring_bytes = 256 << 10;   // per pair; a power of 2
  };

  // ring_bytes for a world that may spend `total_bytes` on all rings.
  static size_t RingBytesFor(int world_size, size_t total_bytes);

  // Bytes of the inbox of one rank; zero-filled and 64-byte aligned it is
  // ready.
  static size_t InboxBytes(int world_size, size_t ring_bytes);

  // inboxes[r]: the inbox of rank r as this process sees it. They and `watch`
  // outlive the transport.
  RingTransport(Rank rank, std::vector<std::byte*> inboxes,
                const PeerWatch& watch, Options options);

  // Leaves the world: peers that still wait for this rank get kAborted.
  ~RingTransport() override;

  Rank rank() const override { return rank_; }
  int world_size() const override { return static_cast<int>(flows_.size()); }
  absl::string_view host(Rank rank) const override {
    return options_.hosts[static_cast<size_t>(ToIndex(rank))];
  }
  absl::string_view name() const override { return options_.name; }
  absl::Status AllToAllAny(SendBuffers send, ReceiveBuffers recv,
                           std::span<size_t> received,
                           const WaitContext& context) override;
  absl::StatusOr<bool> WaitForMessage(absl::Duration timeout) override;
  void Wake() override;
  TransportStats stats() const override { return stats_; }

 private:
  // The head of an inbox; the rings follow.
  struct Door {
    Bell bell;
    alignas(64) std::atomic<uint32_t> left;
  };

  // One direction of the current call with one peer. A message is framed by
  // its size.
  struct Half {
    bool pending = false;
    uint64_t size = 0;      // of the message, once the frame is complete
    size_t frame_done = 0;  // bytes of the frame moved
    size_t done = 0;        // bytes of the message moved
  };
  struct Flow {
    Ring out, in;
    Door* door = nullptr;  // of the peer
    Half send, recv;
    bool oversized = false;  // a message came that does not fit

    bool Pending() const { return send.pending || recv.pending; }
  };

  void Start(SendBuffers send, ReceiveBuffers recv);
  bool Progress(SendBuffers send, ReceiveBuffers recv,
                std::span<size_t> received);
  bool Push(Flow& flow, std::span<const std::byte> data);
  bool Pull(Flow& flow, std::span<std::byte> data, size_t& received);
  bool Done() const { return num_pending_ == 0; }
  // Returns once there may be progress, or with the error that ends the wait.
  absl::Status Wait(const WaitContext& context, absl::Time& started);
  absl::Status FindTrouble(const WaitContext& context, absl::Time started);
  bool AnyInput() const;
  bool AnyProgressPossible() const;

  const Rank rank_;
  const PeerWatch& watch_;
  const Options options_;
  const int spins_;
  Door* own_door_ = nullptr;
  std::vector<Flow> flows_;          // [world_size]
  int num_pending_ = 0;              // halves
  std::optional<size_t> oversized_;  // the peer whose message does not fit
  TransportStats stats_;
  std::atomic<bool> woken_{false};
};

}  // namespace portolan
