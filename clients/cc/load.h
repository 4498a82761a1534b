#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/inference.pb.h"

namespace portolan {

// One request of a load and when it comes, counted from the start.
struct LoadRequest {
  absl::Duration arrival;
  v1::GenerateRequest request;
};

// What became of it. Times are the client's, and count from `arrival`: in an
// open loop a request that was sent late, for the machine or the call before
// took its time, has waited all the same (else the load would spare a service
// that is slow: coordinated omission).
struct LoadRecord {
  absl::Duration arrival;  // when it was due, from the start
  absl::Duration sent;     // when it was sent, from the start
  absl::Duration ttft;     // from its arrival to the first token; zero: none
  absl::Duration end;      // from its arrival to the end
  int64_t prompt_tokens = 0;
  int64_t tokens = 0;
  absl::StatusCode code = absl::StatusCode::kUnknown;

  // Tokens came at `now`, or the end; `now` counts from the start.
  void TakeTokens(int64_t count, absl::Duration now);
  void TakeEnd(absl::StatusCode status, absl::Duration now);
  // Between two tokens, on average; zero with fewer than two.
  absl::Duration tpot() const;
  // How late it was sent.
  absl::Duration late() const { return sent - arrival; }
};

// Seconds, except `count`.
struct Spread {
  int64_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};

struct LoadSummary {
  int64_t requests = 0;
  int64_t done = 0;
  double seconds = 0;  // from the first arrival to the last end
  double offered_per_s = 0;
  double done_per_s = 0;
  double tokens_per_s = 0;  // generated, of requests that were done
  std::map<std::string, int64_t> errors;  // by code
  Spread ttft, tpot, end_to_end;          // of requests that were done
  Spread late;                            // of all, by their sender
};

// Policy: `count` arrivals of a Poisson process, `rate` a second on average,
// by rising time. Equal seeds, equal arrivals.
std::vector<absl::Duration> PoissonArrivals(double rate, int64_t count,
                                            uint64_t seed);

// Reads requests, one JSON object a line: "prompt" (a text, or token ids) or
// "prompt_tokens", the sampling fields of ParseBatchLine()'s body, and
// "arrival_s". Other fields are the user's own.
// Errors: kInvalidArgument naming line and field.
absl::StatusOr<std::vector<LoadRequest>> ParseLoad(std::string_view jsonl,
                                                   bool needs_arrivals);

// By nearest rank.
Spread SpreadOf(std::vector<double> values);

LoadSummary Summarize(std::span<const LoadRecord> records);

std::string ToJson(const LoadSummary& summary);
std::string ToJson(const LoadRecord& record);

}  // namespace portolan
