#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace portolan {

// What the experts of a rank cost: the one definition that engine, replay and
// metrics endpoint share. An access is an expert that a layer of a step needs,
// counted once however many of the step's tokens chose it.
// Source: algorithms.md section 5.
struct ExpertMetrics {
  int64_t steps = 0;
  int64_t tokens = 0;  // of all ranks, prompt tokens included

  int64_t hits = 0;    // resident and complete when the layer needed it
  int64_t late = 0;    // on its way
  int64_t misses = 0;  // neither

  // Time that compute waited for experts.
  absl::Duration stall = absl::ZeroDuration();

  int64_t demand_bytes = 0;
  int64_t prefetch_used_bytes = 0;      // needed before it was evicted
  int64_t prefetch_wasted_bytes = 0;    // evicted unused
  int64_t prefetch_resident_bytes = 0;  // resident and unused as yet

  // Reads ahead by what became of them; those that are resident and unused as
  // yet are in none.
  int64_t prefetches_used = 0;    // complete when needed
  int64_t prefetches_late = 0;    // on their way when needed
  int64_t prefetches_wasted = 0;  // evicted unused

  int64_t accesses() const { return hits + late + misses; }
  // Of needed experts; 0 without any.
  double HitRate() const;
  // Seconds that all ranks together waited, for a token; 0 without any.
  double StallPerToken() const;
  int64_t prefetch_bytes() const {
    return prefetch_used_bytes + prefetch_wasted_bytes +
           prefetch_resident_bytes;
  }
  // Adds those of another rank of the same run: steps and tokens are common.
  void Merge(const ExpertMetrics& other);
};

// How well a source foretold the experts of a layer, `distance` layers before.
// Foretold: as many experts of highest score as the scores expect; needed: the
// union of the step over the tokens of the rank that foretold.
struct PredictionMetrics {
  std::string source;
  int32_t distance = 0;
  int64_t predicted = 0;
  int64_t needed = 0;
  int64_t correct = 0;  // both

  double Precision() const;
  double Recall() const;
};

}  // namespace portolan
