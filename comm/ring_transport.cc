#include "comm/ring_transport.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/peer_errors.h"
#include "runtime/base/check.h"
#include "runtime/base/steady_now.h"

namespace portolan {
namespace {

constexpr size_t kFrameBytes = sizeof(uint64_t);

// A sleeper looks around this often for lost peers and its deadline.
constexpr int64_t kSliceMicroseconds = 10'000;

// Spinning beats sleeping while the peer has a core of its own: the time is
// that of one expert's rows. With fewer cores than ranks it only takes the core
// from the peer that is waited for.
int SpinsFor(int world_size) {
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  return world_size <= cores ? 1500 : 20;
}

}  // namespace

size_t RingTransport::RingBytesFor(int world_size, size_t total_bytes) {
  const auto pairs = static_cast<size_t>(world_size * (world_size - 1));
  const size_t share = total_bytes / std::max<size_t>(pairs, 1);
  return std::clamp<size_t>(std::bit_floor(std::max<size_t>(share, 1)), 4 << 10,
                            256 << 10);
}

size_t RingTransport::InboxBytes(int world_size, size_t ring_bytes) {
  return sizeof(Door) +
         static_cast<size_t>(world_size) * Ring::BytesFor(ring_bytes);
}

RingTransport::RingTransport(Rank rank, std::vector<std::byte*> inboxes,
                             const PeerWatch& watch, Options options)
    : rank_(rank),
      watch_(watch),
      options_(std::move(options)),
      spins_(SpinsFor(static_cast<int>(inboxes.size()))),
      flows_(inboxes.size()) {
  PORTOLAN_CHECK(options_.hosts.size() == inboxes.size());
  const auto self = static_cast<size_t>(ToIndex(rank));
  const auto ring_of = [&](size_t reader, size_t writer) {
    return Ring(inboxes[reader] + sizeof(Door) +
                    writer * Ring::BytesFor(options_.ring_bytes),
                options_.ring_bytes);
  };
  for (size_t peer = 0; peer < flows_.size(); ++peer) {
    flows_[peer].in = ring_of(self, peer);
    flows_[peer].out = ring_of(peer, self);
    flows_[peer].door = reinterpret_cast<Door*>(inboxes[peer]);
  }
  own_door_ = flows_[self].door;
}

RingTransport::~RingTransport() {
  own_door_->left.store(1);
  for (Flow& flow : flows_) flow.door->bell.RingAlways();
}

absl::Status RingTransport::AllToAllAny(SendBuffers send, ReceiveBuffers recv,
                                        std::span<size_t> received,
                                        const WaitContext& context) {
  PORTOLAN_CHECK(send.size() == flows_.size() && recv.size() == flows_.size() &&
                 received.size() == flows_.size());
  std::fill(received.begin(), received.end(), kNotReceived);
  if (!broken_.ok()) return broken_;
  Start(send, recv);
  const auto self = static_cast<size_t>(ToIndex(rank_));
  if (!send[self].empty()) {
    PORTOLAN_CHECK(send[self].size() <= recv[self].size());
    std::memcpy(recv[self].data(), send[self].data(), send[self].size());
    received[self] = send[self].size();
  }
  absl::Time started = absl::InfiniteFuture();
  while (true) {
    const bool moved = Progress(send, recv, received);
    if (Done()) return absl::OkStatus();
    if (oversized_) {
      const Rank sender{static_cast<int32_t>(*oversized_)};
      broken_ = absl::InternalError(absl::StrCat(
          "rank ", *oversized_, " on ", host(sender), " sent a message of ",
          flows_[*oversized_].recv.size, " bytes where rank ", ToIndex(rank_),
          " expected at most ", recv[*oversized_].size(), Describe(context)));
      return broken_;
    }
    if (moved) continue;
    broken_ = Wait(context, started);
    if (!broken_.ok()) return broken_;
  }
}

void RingTransport::Start(SendBuffers send, ReceiveBuffers recv) {
  num_pending_ = 0;
  for (size_t peer = 0; peer < flows_.size(); ++peer) {
    const bool self = peer == static_cast<size_t>(ToIndex(rank_));
    Flow& flow = flows_[peer];
    flow.send = Half{.pending = !self && !send[peer].empty(),
                     .size = send[peer].size()};
    flow.recv = Half{.pending = !self && !recv[peer].empty()};
    num_pending_ += flow.send.pending + flow.recv.pending;
  }
}

bool RingTransport::Progress(SendBuffers send, ReceiveBuffers recv,
                             std::span<size_t> received) {
  bool moved = false;
  const auto self = static_cast<size_t>(ToIndex(rank_));
  // From the next rank on, so that not everybody starts with rank 0.
  for (size_t i = 1; i < flows_.size(); ++i) {
    const size_t peer = (self + i) % flows_.size();
    Flow& flow = flows_[peer];
    bool here = false;
    if (flow.send.pending) here |= Push(flow, send[peer]);
    if (flow.recv.pending) here |= Pull(flow, recv[peer], received[peer]);
    if (flow.oversized) oversized_ = peer;
    if (here) flow.door->bell.RingIfAsleep();
    moved |= here;
  }
  return moved;
}

bool RingTransport::Push(Flow& flow, std::span<const std::byte> data) {
  Half& half = flow.send;
  size_t moved = 0;
  if (half.frame_done < kFrameBytes) {
    const auto frame = std::as_bytes(std::span(&half.size, 1));
    moved += flow.out.Write(frame.subspan(half.frame_done));
    half.frame_done += moved;
    if (half.frame_done < kFrameBytes) return moved > 0;
  }
  const size_t written = flow.out.Write(data.subspan(half.done));
  half.done += written;
  if (half.done == data.size()) {
    half.pending = false;
    --num_pending_;
    ++stats_.messages_sent;
    stats_.bytes_sent += static_cast<int64_t>(data.size());
  }
  return moved + written > 0;
}

bool RingTransport::Pull(Flow& flow, std::span<std::byte> data,
                         size_t& received) {
  Half& half = flow.recv;
  size_t moved = 0;
  if (half.frame_done < kFrameBytes) {
    const auto frame = std::as_writable_bytes(std::span(&half.size, 1));
    moved += flow.in.Read(frame.subspan(half.frame_done));
    half.frame_done += moved;
    if (half.frame_done < kFrameBytes) return moved > 0;
    if (half.size > data.size()) {
      flow.oversized = true;
      return true;
    }
  }
  const size_t read =
      flow.in.Read(data.subspan(half.done, half.size - half.done));
  half.done += read;
  if (half.done == half.size) {
    half.pending = false;
    --num_pending_;
    received = half.size;
    ++stats_.messages_received;
    stats_.bytes_received += static_cast<int64_t>(half.size);
  }
  return moved + read > 0;
}

absl::Status RingTransport::Wait(const WaitContext& context,
                                 absl::Time& started) {
  for (int spin = 0; spin < spins_; ++spin) {
    if (AnyProgressPossible()) return absl::OkStatus();
    _mm_pause();
  }
  if (started == absl::InfiniteFuture()) started = SteadyNow();
  if (absl::Status trouble = FindTrouble(context, started); !trouble.ok()) {
    // What a lost peer sent before its end, an abort with its reason above
    // all, still counts.
    return AnyProgressPossible() ? absl::OkStatus() : trouble;
  }
  const uint32_t seen = own_door_->bell.Prepare();
  if (AnyProgressPossible()) {
    own_door_->bell.StayAwake();
  } else {
    own_door_->bell.Sleep(seen, kSliceMicroseconds);
  }
  return absl::OkStatus();
}

absl::Status RingTransport::FindTrouble(const WaitContext& context,
                                        absl::Time started) {
  if (const auto lost = watch_.lost()) {
    return LostPeerError(*this, *lost, context);
  }
  for (size_t peer = 0; peer < flows_.size(); ++peer) {
    const Flow& flow = flows_[peer];
    if (!flow.Pending() || flow.door->left.load() == 0) continue;
    return LostPeerError(*this,
                         {.rank = Rank{static_cast<int32_t>(peer)},
                          .how = "it has left the world"},
                         context);
  }
  if (SteadyNow() - started < context.timeout) return absl::OkStatus();
  std::vector<Rank> slow;
  for (size_t peer = 0; peer < flows_.size(); ++peer) {
    if (flows_[peer].Pending())
      slow.push_back(Rank{static_cast<int32_t>(peer)});
  }
  return SlowPeersError(*this, slow, context);
}

bool RingTransport::AnyInput() const {
  return std::any_of(flows_.begin(), flows_.end(),
                     [](const Flow& flow) { return flow.in.HasData(); });
}

bool RingTransport::AnyProgressPossible() const {
  for (const Flow& flow : flows_) {
    if (flow.recv.pending && flow.in.HasData()) return true;
    if (flow.send.pending && flow.out.HasRoom()) return true;
  }
  return false;
}

absl::StatusOr<bool> RingTransport::WaitForMessage(absl::Duration timeout) {
  if (!broken_.ok()) return broken_;
  const WaitContext context{.phase = "idle"};
  Note(context);
  const absl::Time deadline = SteadyNow() + timeout;
  while (true) {
    if (AnyInput()) return true;
    if (woken_.exchange(false) || SteadyNow() >= deadline) return false;
    if (const auto lost = watch_.lost()) {
      broken_ = LostPeerError(*this, *lost, context);
      return broken_;
    }
    const uint32_t seen = own_door_->bell.Prepare();
    if (AnyInput() || woken_.load()) {
      own_door_->bell.StayAwake();
    } else {
      own_door_->bell.Sleep(
          seen, std::min(10 * kSliceMicroseconds,
                         absl::ToInt64Microseconds(deadline - SteadyNow())));
    }
  }
}

void RingTransport::Wake() {
  woken_.store(true);
  own_door_->bell.RingAlways();
}

}  // namespace portolan
