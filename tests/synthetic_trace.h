#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "experts/trace.h"

namespace portolan {

// A made-up model that routes as a test says: token ids are drawn, and each
// (token, layer) has logits from which probabilities, choices and a noisy
// look-ahead follow.
struct SyntheticOptions {
  int32_t num_steps = 200;
  int32_t steps_per_sequence = 40;
  int32_t prompt_tokens = 8;
  int32_t vocab = 64;
  uint32_t seed = 1;
  // How much of a token's logits is its own, by token id: 0 is pure noise, so
  // routing is uniform and nothing foretells it.
  float token_strength = 2.0f;
  // From this step on, token ids mean something else.
  int32_t shift_at = -1;
  // Every sequence repeats the first one.
  bool repeat = false;
  bool lookahead = true;
};

inline TraceHeader SyntheticHeader() {
  TraceHeader header;
  header.num_layers = 4;
  header.num_experts = 16;
  header.top_k = 2;
  header.hidden = 8;
  header.lookahead = 2;
  header.expert_bytes = 100000;
  header.expert_memory_bytes = 64 * header.expert_bytes;
  header.numerics_id = 7;
  header.fingerprint = 8;
  return header;
}

class SyntheticModel {
 public:
  explicit SyntheticModel(const SyntheticOptions& options)
      : options_(options), random_(options.seed) {}

  Trace Record() {
    Trace trace{.header = SyntheticHeader()};
    if (!options_.lookahead) trace.header.lookahead = 0;
    for (int32_t id = 0; id < options_.vocab; ++id) {
      trace.embeddings[id] = Embedding(id);
    }
    for (int32_t step = 0; step < options_.num_steps; ++step) {
      trace.steps.push_back(Step(step));
    }
    return trace;
  }

 private:
  using Logits = std::vector<float>;

  static std::vector<Fp16> Embedding(int32_t id) {
    std::mt19937 random(static_cast<uint32_t>(id) + 1000);
    std::vector<Fp16> row;
    for (int32_t i = 0; i < SyntheticHeader().hidden; ++i) {
      row.push_back(ToFp16(std::normal_distribution<float>()(random)));
    }
    return row;
  }

  TraceStep Step(int32_t number) {
    const int32_t in_sequence = number % options_.steps_per_sequence;
    const int64_t sequence = number / options_.steps_per_sequence;
    if (options_.repeat && in_sequence == 0) random_.seed(options_.seed);
    const int32_t tokens = in_sequence == 0 ? options_.prompt_tokens : 1;
    TraceStep step{.step = number};
    step.slices = {{.sequence = sequence,
                    .rank = 0,
                    .first_position = in_sequence,
                    .num_tokens = tokens}};
    step.contexts.resize(static_cast<size_t>(SyntheticHeader().hidden));
    step.layers.resize(static_cast<size_t>(SyntheticHeader().num_layers));
    step.tail_s = 50e-6f;
    for (int32_t i = 0; i < tokens; ++i) {
      step.token_ids.push_back(static_cast<int32_t>(
          random_() % static_cast<uint32_t>(options_.vocab)));
      AddToken(number, step);
    }
    return step;
  }

  void AddToken(int32_t number, TraceStep& step) {
    const bool shifted = options_.shift_at >= 0 && number >= options_.shift_at;
    for (int32_t layer = 0; layer < SyntheticHeader().num_layers; ++layer) {
      std::mt19937 own(static_cast<uint32_t>(step.token_ids.back() * 100 +
                                             layer + (shifted ? 100000 : 0)));
      Logits logits;
      for (int32_t e = 0; e < SyntheticHeader().num_experts; ++e) {
        logits.push_back(options_.token_strength *
                             std::normal_distribution<float>()(own) +
                         std::normal_distribution<float>()(random_));
      }
      AddRow(logits, layer, step);
    }
  }

  void AddRow(const Logits& logits, int32_t layer, TraceStep& step) {
    TraceLayer& to = step.layers[static_cast<size_t>(layer)];
    to.gate_s = 40e-6f;
    to.experts_s += 40e-6f;
    Append(Softmax(logits), to.probabilities);
    std::vector<uint16_t> order(logits.size());
    std::iota(order.begin(), order.end(), uint16_t{0});
    std::ranges::sort(order, std::greater<>(),
                      [&](uint16_t e) { return logits[e]; });
    for (int32_t k = 0; k < SyntheticHeader().top_k; ++k) {
      to.experts.push_back(order[static_cast<size_t>(k)]);
      to.weights.push_back(ToFp16(0.5f));
    }
    if (!options_.lookahead) return;
    if (layer >= 1) {
      Append(Softmax(Noisy(logits)),
             step.layers[static_cast<size_t>(layer - 1)].ahead1);
    }
    if (layer >= 2) {
      Append(Softmax(Noisy(logits)),
             step.layers[static_cast<size_t>(layer - 2)].ahead2);
    }
  }

  // A look-ahead is as good as the token's own part of the logits: with none,
  // it is noise as well.
  Logits Noisy(const Logits& logits) {
    Logits noisy;
    for (const float logit : logits) {
      noisy.push_back((options_.token_strength > 0 ? logit : 0.0f) +
                      std::normal_distribution<float>()(random_));
    }
    return noisy;
  }

  static Logits Softmax(const Logits& logits) {
    Logits p;
    float sum = 0;
    for (const float logit : logits) {
      p.push_back(std::exp(logit));
      sum += p.back();
    }
    for (float& value : p) value /= sum;
    return p;
  }

  static void Append(const Logits& from, std::vector<Fp16>& to) {
    for (const float value : from) to.push_back(ToFp16(value));
  }

  const SyntheticOptions options_;
  std::mt19937 random_;
};

inline Trace SyntheticTrace(const SyntheticOptions& options = {}) {
  return SyntheticModel(options).Record();
}

}  // namespace portolan
