#include "comm/mpi_transport.h"

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/peer_errors.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/steady_now.h"

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
  broken_ = Post(send, recv, context);
  const auto self = static_cast<size_t>(ToIndex(rank_));
  if (!send[self].empty()) {
    PORTOLAN_CHECK(send[self].size() <= recv[self].size());
    std::memcpy(recv[self].data(), send[self].data(), send[self].size());
    received[self] = send[self].size();
  }
  if (broken_.ok()) broken_ = WaitForAll(received, context);
  return broken_;
}

absl::Status MpiTransport::Post(SendBuffers send, ReceiveBuffers recv,
                                const WaitContext& context) {
  const size_t world = hosts_.size();
  const auto self = static_cast<size_t>(ToIndex(rank_));
  const auto refused = [&](size_t peer, int error) {
    return absl::InternalError(
        absl::StrCat("MPI refused a message between rank ", ToIndex(rank_),
                     " and rank ", peer, " on ", hosts_[peer], " (MPI error ",
                     error, ")", Describe(context)));
  };
  num_pending_ = 0;
  for (size_t i = 1; i < world; ++i) {
    const size_t peer = (self + i) % world;
    if (recv[peer].empty()) continue;
    const size_t capacity = std::min<size_t>(recv[peer].size(), INT_MAX);
    const int error = MPI_Irecv(recv[peer].data(), static_cast<int>(capacity),
                                MPI_BYTE, static_cast<int>(peer), kTag,
                                communicator_, &requests_[peer]);
    if (error != MPI_SUCCESS) return refused(peer, error);
    ++num_pending_;
  }
  for (size_t i = 1; i < world; ++i) {
    const size_t peer = (self + i) % world;
    if (send[peer].empty()) continue;
    if (send[peer].size() > INT_MAX) {
      return absl::InternalError(
          absl::StrCat("a message of ", send[peer].size(), " bytes from rank ",
                       ToIndex(rank_), " to rank ", peer, " on ", hosts_[peer],
                       " is larger than MPI carries", Describe(context)));
    }
    const int error = MPI_Isend(
        send[peer].data(), static_cast<int>(send[peer].size()), MPI_BYTE,
        static_cast<int>(peer), kTag, communicator_, &requests_[world + peer]);
    if (error != MPI_SUCCESS) return refused(peer, error);
    ++num_pending_;
    ++stats_.messages_sent;
    stats_.bytes_sent += static_cast<int64_t>(send[peer].size());
  }
  return absl::OkStatus();
}

absl::Status MpiTransport::WaitForAll(std::span<size_t> received,
                                      const WaitContext& context) {
  int spins = 0;
  absl::Time started = absl::InfiniteFuture();
  while (num_pending_ > 0) {
    PORTOLAN_ASSIGN_OR_RETURN(const bool moved, Test(received, context));
    if (moved || ++spins < spins_) continue;
    if (started == absl::InfiniteFuture()) started = SteadyNow();
    const absl::Duration waited = SteadyNow() - started;
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
                     peer, " on ", hosts_[peer], " to rank ", ToIndex(rank_),
                     " (MPI error ", status.MPI_ERROR, ")", Describe(context)));
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
  const WaitContext context{.phase = "idle"};
  Note(context);
  const absl::Time deadline = SteadyNow() + timeout;
  while (true) {
    int found = 0;
    MPI_Iprobe(MPI_ANY_SOURCE, kTag, communicator_, &found, MPI_STATUS_IGNORE);
    if (found != 0) return true;
    const absl::Duration left = deadline - SteadyNow();
    if (woken_.exchange(false) || left <= absl::ZeroDuration()) return false;
    if (const auto lost = watch_.lost()) {
      broken_ = LostPeerError(*this, *lost, context);
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
