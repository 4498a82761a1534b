#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/ids.h"
#include "runtime/base/mutex.h"

namespace portolan {

// What a rank is doing while it waits for others: for deadlines and errors.
struct WaitContext {
  // "step record", "header", "payload", "combine", ...; a literal
  absl::string_view phase;
  int64_t step = -1;   // -1: outside of a step
  int32_t layer = -1;  // -1: outside of a layer
  absl::Duration timeout = absl::Minutes(2);
};

// Messages and bytes exchanged with other ranks since the start.
struct TransportStats {
  int64_t messages_sent = 0;
  int64_t bytes_sent = 0;
  int64_t messages_received = 0;
  int64_t bytes_received = 0;
};

// In `received` of AllToAllAny(): nothing came from that rank.
inline constexpr size_t kNotReceived = std::numeric_limits<size_t>::max();

// One rank's end of a world of ranks that exchange bytes. Messages between two
// ranks arrive in the order in which they were sent.
//
// Errors, the same for every implementation; each names rank, host, phase,
// layer and step:
//   kAborted           a peer died or left; if it failed and said why, the
//                      error has the code of its failure
//   kDeadlineExceeded  a peer is slow: context.timeout passed
//   kInternal          a message of another size than promised
// After an error the world is broken: every later call returns that error. The
// sends of the failed call are abandoned, not ended: their buffers must stay
// until the process ends (KeepUntilExit()).
//
// On one thread per rank only, except Wake() and doing().
class Transport {
 public:
  using SendBuffers = std::span<const std::span<const std::byte>>;
  using ReceiveBuffers = std::span<const std::span<std::byte>>;

  virtual ~Transport() = default;

  virtual Rank rank() const = 0;
  virtual int world_size() const = 0;
  virtual absl::string_view host(Rank rank) const = 0;
  virtual absl::string_view name() const = 0;  // "local", "mpi" or "shm"

  // Sends send[r] to rank r and fills recv[r] with what rank r sent here; both
  // sides know the size, and nothing travels for a size of 0. Each has
  // world_size() entries; a rank's message to itself is copied.
  absl::Status AllToAllV(SendBuffers send, ReceiveBuffers recv,
                         const WaitContext& context);

  // As AllToAllV(), but a message may be shorter than recv[r]: received[r] is
  // its size. An empty send[r] sends nothing and an empty recv[r] expects
  // nothing; the peer must agree. After an error received[r] still tells which
  // messages are complete, the others being kNotReceived.
  virtual absl::Status AllToAllAny(SendBuffers send, ReceiveBuffers recv,
                                   std::span<size_t> received,
                                   const WaitContext& context) = 0;

  // Sleeps until a peer has sent something that no call has received yet
  // (true), or Wake() was called or `timeout` has passed (false). Costs next
  // to no CPU. Errors: kAborted as above.
  virtual absl::StatusOr<bool> WaitForMessage(absl::Duration timeout) = 0;

  // Ends this rank's current or next WaitForMessage(). Thread-safe.
  virtual void Wake() = 0;

  virtual TransportStats stats() const = 0;

  // What this rank does from now on, for whoever has to say where it was when
  // it could not go on itself. AllToAllV() and WaitForMessage() note their own.
  void Note(const WaitContext& doing) ABSL_LOCKS_EXCLUDED(mu_);
  // Thread-safe.
  WaitContext doing() const ABSL_LOCKS_EXCLUDED(mu_);

 protected:
  // Not OK: the world is broken, and every call returns this.
  absl::Status broken_;

 private:
  mutable Mutex mu_;
  WaitContext doing_ ABSL_GUARDED_BY(mu_){.phase = "start"};
};

// Keeps memory that an abandoned operation may still read until the process
// ends. Thread-safe.
void KeepUntilExit(AlignedBuffer buffer);

}  // namespace portolan
