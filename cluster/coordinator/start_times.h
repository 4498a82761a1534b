#pragma once

#include <array>
#include <cstdint>

#include "absl/time/time.h"

namespace portolan {

// Policy: how long a request takes from its assignment to its first token, as
// the slowest of late did. What was seen counts half after every kHalfLife,
// whether or not anything else is seen: a pause is forgotten by itself.
//
// A long prompt says nothing of shorter ones; a short one that was slow says
// that longer ones will not be faster. Prompts are told apart by powers of two.
//
// Thread-compatible.
class StartTimes {
 public:
  static constexpr absl::Duration kHalfLife = absl::Seconds(5);

  // `now` must not fall. Lengths in tokens.
  void Observe(int64_t prompt_tokens, absl::Duration time, absl::Time now);
  // Zero while nothing was seen.
  absl::Duration Expected(int64_t prompt_tokens, absl::Time now) const;

 private:
  struct Slowest {
    absl::Duration time;
    absl::Time seen = absl::InfinitePast();
  };
  static absl::Duration Faded(const Slowest& slowest, absl::Time now);

  std::array<Slowest, 65> by_length_ = {};
};

}  // namespace portolan
