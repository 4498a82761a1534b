#include "experts/predictor_gate.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "experts/prediction_score.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

class GatePredictor final : public Predictor {
 public:
  GatePredictor(const PredictorShape& shape, int32_t distance)
      : shape_(shape),
        distance_{distance},
        expected_(static_cast<size_t>(shape.num_layers) *
                      static_cast<size_t>(shape.num_experts),
                  0.0f),
        order_(static_cast<size_t>(shape.num_experts)),
        tokens_(order_.size()),
        score_("look-ahead", distance) {
    PORTOLAN_CHECK(distance == 1 || distance == 2);
  }

  std::span<const int32_t> distances() const override { return distance_; }
  int32_t lookahead() const override { return distance_[0]; }

  void BeginStep(const StepTokens& /*tokens*/) override { Clear(); }

  void Observe(const LayerObservation& observation) override {
    const int32_t layer = observation.layer;
    if (layer >= distance_[0]) CountScore(observation);
    const MatrixView<const float>& ahead =
        distance_[0] == 1 ? observation.ahead1 : observation.ahead2;
    for (int64_t row = 0; row < ahead.rows(); ++row) {
      CountTopK(ahead.Row(row), Expected(layer + distance_[0]));
    }
  }

  void Predict(int32_t layer, int32_t /*distance*/,
               std::span<Fp16> scores) override {
    std::ranges::fill(scores, Fp16{});
    if (layer >= shape_.num_layers) return;
    std::ranges::transform(Expected(layer), scores.begin(), ToFp16);
  }

  void EndStep() override { Clear(); }

  std::vector<PredictionMetrics> metrics() const override {
    return {score_.metrics()};
  }

 private:
  void Clear() { std::ranges::fill(expected_, 0.0f); }

  std::span<float> Expected(int32_t layer) {
    const auto experts = static_cast<size_t>(shape_.num_experts);
    return std::span(expected_).subspan(static_cast<size_t>(layer) * experts,
                                        experts);
  }

  void CountTopK(std::span<const float> probabilities,
                 std::span<float> expected) {
    std::iota(order_.begin(), order_.end(), 0);
    std::partial_sort(
        order_.begin(), order_.begin() + shape_.top_k, order_.end(),
        [&](int32_t a, int32_t b) {
          const float left = probabilities[static_cast<size_t>(a)];
          const float right = probabilities[static_cast<size_t>(b)];
          return left > right || (left == right && a < b);
        });
    for (int32_t k = 0; k < shape_.top_k; ++k) {
      expected[static_cast<size_t>(order_[static_cast<size_t>(k)])] += 1.0f;
    }
  }

  void CountScore(const LayerObservation& observation) {
    std::ranges::fill(tokens_, 0);
    for (const int32_t expert : observation.experts) {
      ++tokens_[static_cast<size_t>(expert)];
    }
    score_.Count(Expected(observation.layer), tokens_,
                 observation.probabilities.rows());
  }

  const PredictorShape shape_;
  const std::array<int32_t, 1> distance_;
  std::vector<float> expected_;  // [num_layers, num_experts]
  std::vector<int32_t> order_;   // [num_experts]
  std::vector<int32_t> tokens_;  // [num_experts]
  PredictionScore score_;
};

}  // namespace

std::unique_ptr<Predictor> MakeGatePredictor(const PredictorShape& shape,
                                             int32_t distance) {
  return std::make_unique<GatePredictor>(shape, distance);
}

}  // namespace portolan
