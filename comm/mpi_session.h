#pragma once

#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "comm/transport.h"

namespace portolan {

enum class TransportKind { kAuto, kMpi, kShm };

// "auto", "mpi" or "shm". Errors: kInvalidArgument naming the choices.
absl::StatusOr<TransportKind> ParseTransportKind(absl::string_view name);

struct MpiSessionOptions {
  // kAuto: shm if all ranks are on one host, else mpi.
  TransportKind transport = TransportKind::kAuto;
  size_t total_ring_bytes = 16 << 20;  // shm: shared by all pairs of ranks

  // Liveness: a rank shows itself every `beat`; `silence` is its death.
  absl::Duration beat = absl::Milliseconds(250);
  absl::Duration silence = absl::Seconds(2);

  // MPI has no deadlines where all ranks meet: at the start, and as they leave.
  // A rank that waits longer there is ended with an error line on stderr.
  absl::Duration start_timeout = absl::Minutes(5);
  absl::Duration finish_timeout = absl::Minutes(1);
  // This rank as the launcher tells it, for errors before MPI can; -1: unknown.
  int launched_rank = -1;

  // A rank that is busy with something long when a peer is lost is ended after
  // this time, with an error line on stderr: well before mpirun kills it (see
  // --grace of portolan-launch). Infinite: never.
  absl::Duration end_after_loss = absl::Seconds(1);

  // SIGTERM is counted (termination.h), so that a lost peer is still named;
  // a program that does not look at the count itself is ended this long after
  // the signal, with exit code 143. Infinite: never.
  bool catch_termination = true;
  absl::Duration end_after_termination = absl::Seconds(4);
};

// This process as a rank of an MPI job: MPI itself, the transport between the
// ranks, and the liveness of all of them.
//
// On one thread only, the one that made it; one per process.
class MpiSession {
 public:
  // Initialises MPI (funnelled) and meets the other ranks. Collective.
  // Errors: kInvalidArgument if shm is asked for and ranks are on several
  // hosts; kInternal if MPI cannot be initialised; kResourceExhausted, on all
  // ranks, if those of a host cannot share memory.
  static absl::StatusOr<std::unique_ptr<MpiSession>> Create(
      int* argc, char*** argv, const MpiSessionOptions& options = {});

  // Without Finish() ends the process like Finish() with an error: MPI can
  // neither be left nor be used any more.
  virtual ~MpiSession() = default;

  virtual Transport& transport() = 0;

  // The last call. With OK: waits for all ranks to come here, ends MPI and
  // returns 0. With an error, or if a peer is lost meanwhile (then with an
  // error line on stderr): tells the others why, flushes and ends the process
  // at once with `failure_code`, for MPI_Finalize would hang.
  virtual int Finish(const absl::Status& status, int failure_code = 1) = 0;
};

}  // namespace portolan
