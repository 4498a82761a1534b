#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace portolan {

// An expert that the rows of a layer have chosen.
struct ExpertNeed {
  int32_t expert = 0;
  int32_t num_rows = 0;
};

// A needed expert whose weights are in memory.
struct ReadyExpert {
  int32_t need = 0;                 // index into the needs
  const std::byte* slot = nullptr;  // kernel-ready (expert_ffn.h)
};

// A layer of experts whose rows come in one exchange or in several rounds of it
// (token_exchange.h).
struct LayerRound {
  int32_t layer = 0;
  int32_t round = 0;
  int32_t rounds = 1;

  bool is_first() const { return round == 0; }
  bool is_last() const { return round + 1 == rounds; }
};

// Brings the experts of a layer into memory for as long as they are computed.
class ExpertProvider {
 public:
  virtual ~ExpertProvider() = default;

  // What is known of the work ahead; a provider that holds everything ignores
  // it. A step of `num_tokens` tokens of all ranks begins.
  virtual void BeginStep(int64_t /*num_tokens*/) {}
  // Merged hints (hints.h) for a layer ahead: a score for each of its experts,
  // those of other ranks 0.
  virtual void OnHints(int32_t /*layer*/, int32_t /*distance*/,
                       std::span<const float> /*scores*/) {}
  // All hints that came with the beginning of the step are given: what they
  // foretell may be read. Hints of a layer take effect with its Visit(), behind
  // what it needs itself.
  virtual void ReadAhead() {}

  // Calls `compute` with groups of needed experts whose weights are in memory:
  // resident ones first, the others as they arrive, in waves if they do not fit
  // together. Each need comes exactly once; the slots are leased only during
  // the call. `needs` rises by expert and holds experts of this rank only; an
  // expert may be needed again in a later round. The rounds of a layer follow
  // each other.
  // Errors: kDataLoss, kUnavailable (I/O), kCancelled (shutting down), or
  // those of `compute`, after which it is not called again.
  virtual absl::Status VisitRound(
      const LayerRound& at, std::span<const ExpertNeed> needs,
      absl::FunctionRef<absl::Status(std::span<const ReadyExpert>)>
          compute) = 0;

  // The same for a layer of one round.
  absl::Status Visit(
      int32_t layer, std::span<const ExpertNeed> needs,
      absl::FunctionRef<absl::Status(std::span<const ReadyExpert>)> compute) {
    return VisitRound({.layer = layer}, needs, compute);
  }
};

}  // namespace portolan
