#include "cluster/coordinator/start_times.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace portolan {
namespace {

size_t ClassOf(int64_t prompt_tokens) {
  const int64_t tokens = std::max<int64_t>(0, prompt_tokens);
  return static_cast<size_t>(std::bit_width(static_cast<uint64_t>(tokens)));
}

}  // namespace

absl::Duration StartTimes::Faded(const Slowest& slowest, absl::Time now) {
  if (slowest.time <= absl::ZeroDuration()) return absl::ZeroDuration();
  return slowest.time *
         std::exp2(-absl::FDivDuration(
             std::max(now - slowest.seen, absl::ZeroDuration()), kHalfLife));
}

void StartTimes::Observe(int64_t prompt_tokens, absl::Duration time,
                         absl::Time now) {
  Slowest& slowest = by_length_[ClassOf(prompt_tokens)];
  if (time >= Faded(slowest, now)) slowest = {time, now};
}

absl::Duration StartTimes::Expected(int64_t prompt_tokens,
                                    absl::Time now) const {
  absl::Duration expected;
  for (size_t i = 0; i <= ClassOf(prompt_tokens); ++i) {
    expected = std::max(expected, Faded(by_length_[i], now));
  }
  return expected;
}

}  // namespace portolan
