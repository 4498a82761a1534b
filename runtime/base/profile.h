#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace portolan {

// What a rank spends its steps on: every zone there is. Zones nest as they are
// indented here.
enum class Zone : uint8_t {
  kStep,
  kPlan,        //   batching, KV pages, embedding
  kStepRecord,  //   step records of all ranks
  kAttention,   //   the attention block of a layer
  kQkv,         //     its norm, q, k and v
  kHeads,       //     norm and rotation of the heads, KV append
  kScores,      //     scores, softmax, values
  kAttentionOutput,
  kGate,      //   norm, gate probabilities, choice of experts
  kObserve,   //     what predictors and traces take
  kDense,     //   a dense block in place of experts
  kExchange,  //   the experts of a layer and the ways there and back
  kDispatch,
  kExperts,
  kExpertWait,  //       for weights to arrive
  kGateUp,
  kDown,
  kCombine,
  kLogits,    //   final norm and lm_head
  kSampling,  //   choice and delivery of tokens
};
inline constexpr int kNumZones = static_cast<int>(Zone::kSampling) + 1;

// "step", "attention", "wait for experts", ...
const char* ZoneName(Zone zone);

// Notes when a rank's step loop enters and leaves zones. Give a null pointer
// where nobody asks: a scope then costs a comparison at either end.
//
// On one thread only. Nothing is allocated after construction; zones that come
// when `capacity` is reached are counted and left out.
class Profile {
 public:
  explicit Profile(int64_t capacity = int64_t{1} << 20);

  // Zones end in the reverse order of their beginning. `layer`: -1 for none.
  void Begin(Zone zone, int32_t layer);
  void End();

  // Forgets what was noted so far; requires that no zone is open.
  void Clear();

  struct Total {
    int64_t count = 0;
    double seconds = 0;       // inner zones included
    double self_seconds = 0;  // without them
  };
  // By zone, of what was noted and has ended.
  std::array<Total, kNumZones> Totals() const;

  int64_t num_dropped() const { return num_dropped_; }
  // What the user of a trace must know; empty if it is whole.
  std::string Notice() const;

  // Writes the zones as a trace that chrome://tracing and Perfetto read, one
  // process for the rank: microseconds of the host's monotonic clock, so that
  // the files of several ranks of one host fit together.
  // Errors: kUnavailable naming the file.
  absl::Status WriteTrace(const std::string& path, int rank) const;

 private:
  struct Event {
    int64_t begin_ns = 0;
    int64_t end_ns = 0;  // 0: still open
    int32_t layer = -1;
    int32_t parent = -1;
    Zone zone = Zone::kStep;
  };

  std::vector<Event> events_;  // by begin
  std::vector<int32_t> open_;  // indexes into events_, -1 for a dropped one
  int64_t num_dropped_ = 0;
};

// A zone from here to the end of the scope.
class ProfileScope {
 public:
  ProfileScope(Profile* profile, Zone zone, int32_t layer = -1)
      : profile_(profile) {
    if (profile_ != nullptr) profile_->Begin(zone, layer);
  }
  ~ProfileScope() {
    if (profile_ != nullptr) profile_->End();
  }
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;

 private:
  Profile* const profile_;
};

}  // namespace portolan
