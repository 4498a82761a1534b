#pragma once

#include <cstdint>
#include <optional>

#include "absl/time/time.h"

namespace portolan {

struct BackoffOptions {
  absl::Duration first = absl::Milliseconds(100);
  absl::Duration longest = absl::Seconds(5);
  // Without success for so long, there is no further try.
  absl::Duration give_up_after = absl::Seconds(60);
};

// Policy: how long to wait before the next try. Delays double from `first` to
// `longest`, each shortened by up to a half at random, so that many clients do
// not come back at the same moment. Equal seeds and calls, equal delays.
//
// Thread-compatible.
class Backoff {
 public:
  Backoff(const BackoffOptions& options, uint64_t seed);

  // A try failed at `now`; `asked` is what the server wants. Returns the delay,
  // at least `asked`, or nothing if it would pass the limit.
  std::optional<absl::Duration> Next(absl::Time now,
                                     std::optional<absl::Duration> asked);

  // A try succeeded, wholly or in part.
  void Reset();

 private:
  const BackoffOptions options_;
  uint64_t random_;
  absl::Duration delay_;
  std::optional<absl::Time> failing_since_;
};

}  // namespace portolan
