#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/exchange_options.h"
#include "comm/routing_patterns.h"
#include "comm/transport.h"

namespace portolan {

struct ExchangeBenchConfig {
  RoutingPattern pattern = RoutingPattern::kUniform;
  double zipf_s = 1.2;
  int64_t tokens_per_rank = 64;
  int32_t hidden = 2048;
  int32_t num_experts = 64;
  int32_t top_k = 8;
  CombineMode combine = CombineMode::kExact;
  int64_t buffer_bytes = int64_t{256} << 20;
  int warmup = 5;
  int iterations = 50;
  uint64_t seed = 1;

  // Errors: kInvalidArgument naming the field.
  absl::Status Validate() const;
};

// One line of the table, by the rule of nccl-tests: the size is that of the
// largest rank, the time of an iteration that of the slowest rank.
struct ExchangeBenchResult {
  int world_size = 0;
  int64_t tokens = 0;         // over all ranks
  int64_t largest_bytes = 0;  // S: activation and result rows of one rank
  absl::Duration mean, p50, p99;
  double algbw = 0;              // GB/s: S / mean
  double busbw = 0;              // algbw * (n - 1) / n
  double logical_gbps = 0;       // all ranks, a row per selection each way
  double deduplicated_gbps = 0;  // a row per (token, rank), and what returns
  double wire_gbps = 0;          // what left the ranks, headers included
  double messages = 0;           // sent per iteration by all ranks
  double balancedness = 0;       // mean / max of selections per rank; 1 is best
  double imbalance = 0;          // max / mean
  int rounds = 0;
  int64_t num_wrong = 0;  // output values that differ from the reference
};

// Measures one TokenExchange::Run() for made-up routing: bf16 rows out, f32
// rows back, experts in equal shares, without any expert's computation.
// Before and after the timed iterations the output of a made-up expert is
// compared with a local computation, bit for bit. Collective; every rank gets
// the same result.
absl::StatusOr<ExchangeBenchResult> RunExchangeBench(
    Transport& transport, const ExchangeBenchConfig& config);

}  // namespace portolan
