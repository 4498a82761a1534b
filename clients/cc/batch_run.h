#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "clients/cc/client.h"

namespace portolan {

struct BatchOptions {
  std::string input;       // JSONL of BatchLine; "-": standard input
  std::string output;      // JSONL of results; empty: standard output
  int window = 16;         // requests in work at a time
  std::string key_prefix;  // before each custom_id in the idempotency key
};

struct BatchSummary {
  int64_t total = 0;
  int64_t skipped = 0;  // had a result from an earlier run
  int64_t done = 0;
  int64_t failed = 0;  // have an error for their result
};

// Submits every line of a batch and writes its result as soon as it is there,
// in order of completion. A run that was cut short is gone on with by the same
// call: lines that have a good result in `output` are skipped, the others are
// submitted with the same idempotency keys, so that what runs or is done
// already is only fetched. Errors of an earlier run are tried again.
//
// A request that fails is a result. Errors of the whole batch: kNotFound,
// kInvalidArgument naming file and line, before anything is submitted;
// kUnavailable, kUnauthenticated, kPermissionDenied of the service; kCancelled.
absl::StatusOr<BatchSummary> RunBatch(
    Client& client, const BatchOptions& options,
    const std::function<void(const BatchSummary&)>& on_progress);

}  // namespace portolan
