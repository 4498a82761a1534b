#pragma once

#include <mpi.h>

#include <atomic>
#include <string>
#include <vector>

#include "comm/peer_watch.h"
#include "comm/ring.h"
#include "comm/transport.h"
#include "runtime/base/aligned_buffer.h"

namespace portolan {

// A Transport over MPI messages: non-blocking sends and receives polled with a
// back-off, never a collective or a blocking call, which would hang on a dead
// peer. After an error it makes no further MPI call.
//
// A message may have at most 2^31 - 1 bytes.
class MpiTransport final : public Transport {
 public:
  // `hosts` by rank; `watch` outlives the transport. Uses `communicator` alone.
  MpiTransport(MPI_Comm communicator, std::vector<std::string> hosts,
               const PeerWatch& watch);

  Rank rank() const override { return rank_; }
  int world_size() const override { return static_cast<int>(hosts_.size()); }
  absl::string_view host(Rank rank) const override {
    return hosts_[static_cast<size_t>(ToIndex(rank))];
  }
  absl::string_view name() const override { return "mpi"; }
  absl::Status AllToAllAny(SendBuffers send, ReceiveBuffers recv,
                           std::span<size_t> received,
                           const WaitContext& context) override;
  absl::StatusOr<bool> WaitForMessage(absl::Duration timeout) override;
  void Wake() override;
  TransportStats stats() const override { return stats_; }

 private:
  absl::Status Post(SendBuffers send, ReceiveBuffers recv,
                    const WaitContext& context);
  // Completes what can be; tells whether anything was.
  absl::StatusOr<bool> Test(std::span<size_t> received,
                            const WaitContext& context);
  absl::Status Complete(const MPI_Status& status, size_t index,
                        std::span<size_t> received, const WaitContext& context);
  absl::Status WaitForAll(std::span<size_t> received,
                          const WaitContext& context);
  absl::Status FindTrouble(const WaitContext& context,
                           absl::Duration waited) const;

  const MPI_Comm communicator_;
  const std::vector<std::string> hosts_;
  const PeerWatch& watch_;
  const int spins_;
  Rank rank_{};
  TransportStats stats_;
  std::atomic<bool> woken_{false};
  Bell bell_;  // for Wake()

  // [2 * world_size]: the receive of rank r at r, the send to it behind.
  std::vector<MPI_Request> requests_;
  std::vector<MPI_Status> statuses_;
  std::vector<int> completed_;
  int num_pending_ = 0;
};

}  // namespace portolan
