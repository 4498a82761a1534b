#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"

namespace portolan {

// How the next token is drawn. The defaults change nothing (temperature 1,
// the whole vocabulary).
struct SamplingParams {
  double temperature = 1;  // 0: greedy
  int32_t top_k = 0;       // 0: off
  double top_p = 1;        // 1: off
  double min_p = 0;        // 0: off
  uint64_t seed = 0;
  double repetition_penalty = 1;  // 1: off; over prompt and output
  double presence_penalty = 0;    // over the output
  double frequency_penalty = 0;   // over the output
};

// Errors: kInvalidArgument naming the field and its range.
absl::Status ValidateSampling(const SamplingParams& params);

// Draws tokens. Equal input gives the equal token: the random number is
// Philox at (seed, absolute position), ties go to the lower id, sums have a
// fixed order. Order of the filters: penalties, temperature, top-k, top-p,
// min-p.
//
// Keeps scratch of the vocabulary's size. Thread-compatible.
class Sampler {
 public:
  explicit Sampler(int32_t vocab_size);

  // logits: [vocab_size]. context: the sequence's tokens so far, of which the
  // first num_prompt are the prompt (used by the penalties only).
  // Returns the token at position context.size().
  int32_t Sample(std::span<const float> logits, const SamplingParams& params,
                 std::span<const int32_t> context, int64_t num_prompt);

 private:
  struct Candidate {
    float logit;
    int32_t token;
  };

  void Penalize(const SamplingParams& params, std::span<const int32_t> context,
                int64_t num_prompt);
  int32_t Draw(const SamplingParams& params, uint64_t position);
  // Sorts so many of the candidates that those beyond cannot be chosen, and
  // returns how many may be.
  size_t Filter(const SamplingParams& params);
  void SortFirst(size_t count);
  double Weight(const Candidate& candidate, double temperature) const;

  std::vector<float> logits_;          // after penalties
  std::vector<Candidate> candidates_;  // descending in the sorted part
  std::vector<int32_t> counts_;        // occurrences, zero between calls
  size_t num_sorted_ = 0;
  float max_logit_ = 0;
};

}  // namespace portolan
