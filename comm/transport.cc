#include "comm/transport.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/peer_errors.h"
#include "runtime/base/mutex.h"

namespace portolan {

void Transport::Note(const WaitContext& doing) {
  MutexLock lock(mu_);
  doing_ = doing;
}

WaitContext Transport::doing() const {
  MutexLock lock(mu_);
  return doing_;
}

absl::Status Transport::AllToAllV(SendBuffers send, ReceiveBuffers recv,
                                  const WaitContext& context) {
  // One thread per rank, so a per-thread buffer is a per-rank buffer.
  thread_local std::vector<size_t> received;
  Note(context);
  received.assign(static_cast<size_t>(world_size()), kNotReceived);
  if (absl::Status status = AllToAllAny(send, recv, received, context);
      !status.ok()) {
    return status;
  }
  for (size_t peer = 0; peer < recv.size(); ++peer) {
    if (recv[peer].empty() || received[peer] == recv[peer].size()) continue;
    broken_ = absl::InternalError(absl::StrCat(
        "rank ", peer, " on ", host(Rank(static_cast<int>(peer))), " sent ",
        received[peer], " bytes where rank ", ToIndex(rank()), " expected ",
        recv[peer].size(), Describe(context)));
    return broken_;
  }
  return absl::OkStatus();
}

void KeepUntilExit(AlignedBuffer buffer) {
  static auto& mu = *new Mutex;
  static auto& kept = *new std::vector<AlignedBuffer>;
  MutexLock lock(mu);
  kept.push_back(std::move(buffer));
}

}  // namespace portolan
