#include "comm/mpi_transport.h"

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "comm/peer_errors.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr int kTag = 1;

// How often a waiting rank polls, by how long it has waited: an eighth of that
// time is lost at worst, and a long wait costs next to no CPU.
constexpr absl::Duration kYieldFor = absl::Microseconds(100);
constexpr absl::Duration kLongestNap = absl::Milliseconds(1);
constexpr absl::Duration kIdleNap = absl::Milliseconds(10);

void Nap(absl::Duration time) {
  const timespec wait = absl::ToTimespec(time);
  nanosleep(&wait, nullptr);
}

}  // namespace

MpiTransport::MpiTransport(MPI_Comm communicator,
                           std::vector<std::string> hosts,
                           const PeerWatch& watch)
    : communicator_(communicator),
      hosts_(std::move(hosts)),
      watch_(watch),
      spins_(hosts_.size() <= std::thread::hardware_concurrency() ? 200 : 5),
      bell_{},
      requests_(2 * hosts_.size(), MPI_REQUEST_NULL),
      statuses_(2 * hosts_.size()),
      completed_(2 * hosts_.size()) {
  int rank = 0;
  MPI_Comm_rank(communicator, &rank);
  rank_ = Rank{rank};
}

absl::Status MpiTransport::AllToAllAny(SendBuffers send, ReceiveBuffers recv,
                                       std::span<size_t> received,
                                       const WaitContext& context) {
  PORTOLAN_CHECK(send.size() == hosts_.size() && recv.size() == hosts_.size() &&
                 received.size() == hosts_.size());
  std::fill(received.begin(), received.end(), kNotReceived);
  if (!broken_.ok()) return broken_;
  broken_ = Post(send, recv);
  const auto self = static_cast<size_t>(ToIndex(rank_));
  if (!send[self].empty()) {
    PORTOLAN_CHECK(send[self].size() <= recv[self].size());
    std::memcpy(recv[self].data(), send[self].data(), send[self].size());
    received[self] = send[self].size();
  }
  if (broken_.ok()) broken_ = WaitForAll(received, context);
  return broken_;
}

absl::Status MpiTransport::Post(SendBuffers send, ReceiveBuffers recv) {
  const size_t world = hosts_.size();
  const auto self = static_cast<size_t>(ToIndex(rank_));
  int error = MPI_SUCCESS;
  num_pending_ = 0;
  for (size_t i = 1; i < world; ++i) {
    const size_t peer = (self + i) % world;
    if (recv[peer].empty()) continue;
    const size_t capacity = std::min<size_t>(recv[peer].size(), INT_MAX);
    error |= MPI_Irecv(recv[peer].data(), static_cast<int>(capacity), MPI_BYTE,
                       static_cast<int>(peer), kTag, communicator_,
                       &requests_[peer]);
    ++num_pending_;
  }
  for (size_t i = 1; i < world; ++i) {
    const size_t peer = (self + i) % world;
    if (send[peer].empty()) continue;
    PORTOLAN_CHECK(send[peer].size() <= INT_MAX);
    error |= MPI_Isend(send[peer].data(), static_cast<int>(send[peer].size()),
                       MPI_BYTE, static_cast<int>(peer), kTag, communicator_,
                       &requests_[world + peer]);
    ++num_pending_;
    ++stats_.messages_sent;
    stats_.bytes_sent += static_cast<int64_t>(send[peer].size());
  }
  if (error == MPI_SUCCESS) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("MPI refused a message (error ", error, ")"));
}

absl::Status MpiTransport::WaitForAll(std::span<size_t> received,
                                      const WaitContext& context) {
  int spins = 0;
  absl::Time started = absl::InfiniteFuture();
  while (num_pending_ > 0) {
    PORTOLAN_ASSIGN_OR_RETURN(const bool moved, Test(received, context));
    if (moved || ++spins < spins_) continue;
    if (started == absl::InfiniteFuture()) started = absl::Now();
    const absl::Duration waited = absl::Now() - started;
    if (absl::Status trouble = FindTrouble(context, waited); !trouble.ok()) {
      // What a lost peer sent before its end, an abort with its reason above
      // all, still counts.
      PORTOLAN_ASSIGN_OR_RETURN(const bool more, Test(received, context));
      if (!more) return trouble;
    }
    if (waited < kYieldFor) {
      sched_yield();
    } else {
      Nap(std::min(waited / 8, kLongestNap));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> MpiTransport::Test(std::span<size_t> received,
                                        const WaitContext& context) {
  int count = 0;
  const int error =
      MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count,
                   completed_.data(), statuses_.data());
  if (count == MPI_UNDEFINED) count = 0;
  for (int i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    if (error == MPI_SUCCESS) statuses_[at].MPI_ERROR = MPI_SUCCESS;
    PORTOLAN_RETURN_IF_ERROR(Complete(
        statuses_[at], static_cast<size_t>(completed_[at]), received, context));
  }
  return count > 0;
}

absl::Status MpiTransport::Complete(const MPI_Status& status, size_t index,
                                    std::span<size_t> received,
                                    const WaitContext& context) {
  --num_pending_;
  const size_t peer = index % hosts_.size();
  if (status.MPI_ERROR != MPI_SUCCESS) {
    int error_class = 0;
    MPI_Error_class(status.MPI_ERROR, &error_class);
    return absl::InternalError(
        absl::StrCat(error_class == MPI_ERR_TRUNCATE
                         ? "a message larger than expected came from rank "
                         : "MPI reports a failed message with rank ",
                     peer, " on ", hosts_[peer], " (MPI error ",
                     status.MPI_ERROR, ")", Describe(context)));
  }
  if (index >= hosts_.size()) return absl::OkStatus();  // a send
  int bytes = 0;
  MPI_Get_count(&status, MPI_BYTE, &bytes);
  received[peer] = static_cast<size_t>(bytes);
  ++stats_.messages_received;
  stats_.bytes_received += bytes;
  return absl::OkStatus();
}

absl::Status MpiTransport::FindTrouble(const WaitContext& context,
                                       absl::Duration waited) const {
  if (const auto lost = watch_.lost()) {
    return LostPeerError(*this, *lost, context);
  }
  if (waited < context.timeout) return absl::OkStatus();
  std::vector<Rank> slow;
  for (size_t peer = 0; peer < hosts_.size(); ++peer) {
    if (requests_[peer] != MPI_REQUEST_NULL ||
        requests_[hosts_.size() + peer] != MPI_REQUEST_NULL) {
      slow.push_back(Rank{static_cast<int32_t>(peer)});
    }
  }
  return SlowPeersError(*this, slow, context);
}

absl::StatusOr<bool> MpiTransport::WaitForMessage(absl::Duration timeout) {
  if (!broken_.ok()) return broken_;
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    int found = 0;
    MPI_Iprobe(MPI_ANY_SOURCE, kTag, communicator_, &found, MPI_STATUS_IGNORE);
    if (found != 0) return true;
    const absl::Duration left = deadline - absl::Now();
    if (woken_.exchange(false) || left <= absl::ZeroDuration()) return false;
    if (const auto lost = watch_.lost()) {
      broken_ = LostPeerError(*this, *lost, WaitContext{.phase = "idle"});
      return broken_;
    }
    const uint32_t seen = bell_.Prepare();
    if (woken_.load()) {
      bell_.StayAwake();
    } else {
      bell_.Sleep(seen, absl::ToInt64Microseconds(std::min(left, kIdleNap)));
    }
  }
}

void MpiTransport::Wake() {
  woken_.store(true);
  bell_.RingAlways();
}

}  // namespace portolan
