#include "comm/silence.h"

#include <algorithm>

namespace portolan {

std::optional<size_t> SilenceWatch::FindSilent(absl::Duration now) {
  const absl::Duration gap = last_look_ ? now - *last_look_ : absl::Duration();
  last_look_ = now;
  const absl::Duration held_up =
      gap > limit_ / 4 ? gap - limit_ / 4 : absl::Duration();
  std::optional<size_t> silent;
  for (size_t peer = 0; peer < heard_.size(); ++peer) {
    if (!heard_[peer]) continue;
    if (held_up > absl::Duration()) {
      heard_[peer] = std::min(*heard_[peer] + held_up, now);
    }
    if (!silent && now - *heard_[peer] > limit_) silent = peer;
  }
  if (silent) Forget(*silent);
  return silent;
}

}  // namespace portolan
