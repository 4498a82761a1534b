#include "clients/cc/backoff.h"

#include <algorithm>

#include "clients/cc/random.h"

namespace portolan {
Backoff::Backoff(const BackoffOptions& options, uint64_t seed)
    : options_(options), random_(seed), delay_(options.first) {}

std::optional<absl::Duration> Backoff::Next(
    absl::Time now, std::optional<absl::Duration> asked) {
  if (!failing_since_.has_value()) failing_since_ = now;
  const double unit = NextUnit(random_);
  absl::Duration delay = delay_ * (1 - unit / 2);
  // Nobody may come earlier than asked, but not all at once either.
  if (asked.has_value()) delay = std::max(delay, *asked * (1 + unit / 4));
  delay_ = std::min(delay_ * 2, options_.longest);
  if (now + delay - *failing_since_ > options_.give_up_after) {
    return std::nullopt;
  }
  return delay;
}

void Backoff::Reset() {
  delay_ = options_.first;
  failing_since_.reset();
}

}  // namespace portolan
