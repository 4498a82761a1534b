#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace portolan {

// Where a sequence stands in meaning: the decayed sum of the embeddings of its
// tokens. The key of semantic search and of traces; only its direction counts.
// Thread-compatible.
class SequenceContext {
 public:
  static constexpr float kDecay = 0.99f;  // per token

  explicit SequenceContext(int32_t hidden)
      : sum_(static_cast<size_t>(hidden), 0.0f) {}

  void Append(std::span<const float> embedding) {
    for (size_t i = 0; i < sum_.size(); ++i) {
      sum_[i] = kDecay * sum_[i] + embedding[i];
    }
  }

  std::span<const float> vector() const { return sum_; }

 private:
  std::vector<float> sum_;
};

}  // namespace portolan
