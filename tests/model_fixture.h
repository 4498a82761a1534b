#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "launcher/wiring.h"
#include "runtime/base/fp16.h"
#include "runtime/model/forward_observer.h"

namespace portolan {

// Options for the bundled model, with `ranks` ranks as threads.
inline JobOptions BundledModel(int ranks = 1) {
  JobOptions options;
  options.model_dir = PORTOLAN_SOURCE_DIR "/models/tiny-moe";
  options.ranks = ranks;
  options.threads = 1;
  options.step_timeout_s = 60;
  return options;
}

// Keeps what the gates say: by layer, one row per token seen so far.
class GateRecorder : public ForwardObserver {
 public:
  struct Layer {
    std::vector<std::vector<float>> probabilities;
    std::vector<std::vector<int32_t>> experts;
    std::vector<std::vector<float>> weights;
  };

  std::span<const Fp16> OnGate(const GateOutput& gate) override {
    layers.resize(std::max(layers.size(), static_cast<size_t>(gate.layer) + 1));
    Layer& layer = layers[static_cast<size_t>(gate.layer)];
    const int64_t tokens = gate.probabilities.rows();
    for (int64_t token = 0; token < tokens; ++token) {
      const auto row = gate.probabilities.Row(token);
      const size_t top_k = gate.experts.size() / static_cast<size_t>(tokens);
      const size_t first = static_cast<size_t>(token) * top_k;
      const auto experts = gate.experts.subspan(first, top_k);
      const auto weights = gate.weights.subspan(first, top_k);
      layer.probabilities.emplace_back(row.begin(), row.end());
      layer.experts.emplace_back(experts.begin(), experts.end());
      layer.weights.emplace_back(weights.begin(), weights.end());
    }
    return {};
  }

  std::vector<Layer> layers;
};

// Ignores tokens: for tests that drive the forward pass themselves.
class NoSink : public TokenSink {
 public:
  bool OnToken(int64_t, const GeneratedToken&) override { return false; }
  void OnFinish(int64_t, const SequenceEnd&) override {}
};

// Passes on to a sink that is made later.
class Relay : public TokenSink {
 public:
  bool OnToken(int64_t id, const GeneratedToken& token) override {
    return sink->OnToken(id, token);
  }
  void OnFinish(int64_t id, const SequenceEnd& end) override {
    sink->OnFinish(id, end);
  }
  TokenSink* sink = nullptr;
};

// One sequence through the forward pass of a rank, chunk by chunk; every rank
// of the world must drive the same number of chunks.
class SequenceRunner {
 public:
  explicit SequenceRunner(RankRuntime& rank) : rank_(rank) {}

  // Computes `tokens` after those before and appends the logits of each to
  // `logits`. Requires room in the KV cache.
  absl::Status Append(std::span<const int32_t> tokens,
                      std::vector<std::vector<float>>& logits) {
    const auto first = static_cast<int64_t>(num_tokens_);
    num_tokens_ += tokens.size();
    PORTOLAN_CHECK(rank_.kv().Grow(pages_, static_cast<int64_t>(num_tokens_)));
    std::vector<ForwardSequence> step;
    if (!tokens.empty()) {
      step.push_back({.tokens = tokens,
                      .first_position = first,
                      .pages = pages_,
                      .logits = LogitRows::kAll});
    }
    rank_.forward().Begin(step);
    StepRecord record;
    record.has_work = true;
    record.rows_planned = rank_.forward().num_tokens();
    if (auto begun = rank_.exchange().BeginStep(record); !begun.ok()) {
      return begun.status();
    }
    auto rows = rank_.forward().Run(record.rows_planned);
    if (!rows.ok()) return rows.status();
    for (int64_t row = 0; row < rows->rows(); ++row) {
      logits.emplace_back(rows->Row(row).begin(), rows->Row(row).end());
    }
    return absl::OkStatus();
  }

  // Shares the computed pages of `tokens`, all that was appended.
  void Publish(std::span<const int32_t> tokens) {
    rank_.kv().Publish(pages_, 0, tokens);
  }
  // Begins with the shared pages of `tokens`; returns how many they hold.
  int64_t Adopt(std::span<const int32_t> tokens) {
    const int64_t found = rank_.kv().Adopt(pages_, tokens);
    num_tokens_ = static_cast<size_t>(found);
    return found;
  }

  // All bytes of the sequence's keys and values.
  std::vector<std::byte> KvBytes(int32_t num_layers, int64_t page_bytes) const {
    std::vector<std::byte> bytes;
    for (const int32_t page : pages_) {
      for (int32_t layer = 0; layer < num_layers; ++layer) {
        const std::byte* data = rank_.kv().Page(page, layer);
        bytes.insert(bytes.end(), data, data + page_bytes);
      }
    }
    return bytes;
  }

 private:
  RankRuntime& rank_;
  std::vector<int32_t> pages_;
  size_t num_tokens_ = 0;
};

// Several sequences through the forward pass of a rank, step by step together;
// every rank of the world must drive the same number of steps.
class BatchRunner {
 public:
  BatchRunner(RankRuntime& rank, int32_t batch)
      : rank_(rank),
        texts_(static_cast<size_t>(batch)),
        pages_(static_cast<size_t>(batch)) {}

  // Computes tokens [first, first + count) of every sequence; returns their
  // logits, sequence by sequence, valid until the next step.
  absl::StatusOr<MatrixView<const float>> Step(
      const std::function<std::vector<int32_t>(int32_t)>& text_of,
      int64_t first, int64_t count) {
    std::vector<ForwardSequence> step;
    for (size_t i = 0; i < texts_.size(); ++i) {
      if (texts_[i].empty()) texts_[i] = text_of(static_cast<int32_t>(i));
      PORTOLAN_CHECK(rank_.kv().Grow(pages_[i], first + count));
      step.push_back(
          {.tokens = std::span<const int32_t>(texts_[i]).subspan(
               static_cast<size_t>(first), static_cast<size_t>(count)),
           .first_position = first,
           .pages = pages_[i],
           .logits = LogitRows::kAll});
    }
    rank_.forward().Begin(step);
    StepRecord record;
    record.has_work = true;
    record.rows_planned = rank_.forward().num_tokens();
    if (auto begun = rank_.exchange().BeginStep(record); !begun.ok()) {
      return begun.status();
    }
    return rank_.forward().Run(record.rows_planned);
  }

 private:
  RankRuntime& rank_;
  std::vector<std::vector<int32_t>> texts_;
  std::vector<std::vector<int32_t>> pages_;
};

}  // namespace portolan
