#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "absl/time/time.h"

namespace portolan {

// Policy: which peers have been silent for too long. `now` is monotonic time
// since any fixed moment and never falls.
//
// A peer is watched from its first sign of life on, so that one that starts
// late, or whose way is blocked, raises no alarm. If the caller itself was held
// up (stopped, or without a core), that time counts against nobody.
class SilenceWatch {
 public:
  SilenceWatch(size_t num_peers, absl::Duration limit)
      : limit_(limit), heard_(num_peers) {}

  // Something came from `peer`.
  void Heard(size_t peer, absl::Duration now) { heard_[peer] = now; }

  // `peer` said good-bye, or is known to be lost: it is no longer watched.
  void Forget(size_t peer) { heard_[peer].reset(); }

  // To be called at least every limit / 4, after Heard() for all that has come.
  // Returns the first peer silent for longer than the limit, which is then
  // forgotten.
  std::optional<size_t> FindSilent(absl::Duration now);

 private:
  const absl::Duration limit_;
  std::vector<std::optional<absl::Duration>> heard_;
  std::optional<absl::Duration> last_look_;
};

}  // namespace portolan
