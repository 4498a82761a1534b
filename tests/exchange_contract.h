#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "comm/token_exchange.h"
#include "comm/transport.h"

namespace portolan::testing {

// A made-up layer that every rank can compute alone, and the check of a
// TokenExchange against it. What is true of one transport is true of all: the
// LocalWorld tests and the MPI programs run the same functions.
struct ContractCase {
  int num_layers = 3;
  int num_experts = 11;  // not divisible by 2, 3 or 5 ranks
  int top_k = 3;
  int hidden = 40;
  std::vector<int> tokens_of_rank = {7, 0, 13, 1, 5};  // by rank modulo 5
  CombineMode combine = CombineMode::kExact;
  int64_t buffer_bytes = int64_t{64} << 20;
  int64_t eager_bytes = 32 << 10;
  int threads = 1;  // that sum
  bool hints = true;
  int steps = 2;
  uint64_t seed = 1;
  uint64_t numerics_id = 7;
  uint64_t epoch = 0;
  absl::Duration step_timeout = absl::Seconds(30);
  absl::Duration expert_load_time = {};
  PhaseHook phase_hook = {};
  // What compute returns, for local errors; empty: OK.
  std::function<absl::Status(int64_t step, int layer)> compute_status = {};
};

ExchangeOptions OptionsOf(const ContractCase& c);

// Uneven on purpose: the last rank owns about half, some ranks may own nothing.
OwnerTable UnevenOwners(const ContractCase& c, int world_size);

// Runs c.steps steps over all layers and compares every output value bitwise,
// every hint and the step records with what this rank computes by itself. The
// outputs of the last step are appended to `outputs` if given.
absl::Status CheckExchange(Transport& transport, const ContractCase& c,
                           std::vector<float>* outputs = nullptr);

// All cases that every transport must pass: inline and large messages, many
// rounds, zero tokens everywhere, both combine modes, no hints.
absl::Status CheckAllCases(Transport& transport);

}  // namespace portolan::testing
