// The forward pass with a gate of sigmoids, which no family asks for yet: the
// bundled model's weights, read as if its config did.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "comm/local_world.h"
#include "runtime/model/checkpoint/fingerprint.h"
#include "tests/model_fixture.h"

namespace portolan {
namespace {

const std::vector<int32_t> kText = {11, 750, 1489, 2228, 2967, 3706, 352, 1091,
                                    7,  30,  4000, 17,   99,   256,  198, 12};

Model ModelWith(GateScore score) {
  const std::string dir = BundledModel().model_dir;
  Model model = *OpenModel(dir);
  model.weights = *DenseWeights::Load(
      model.config, *model.checkpoint, [](int64_t, int64_t) {},
      [](const std::string&) {});
  model.fingerprint = *ModelFingerprint(model.config, *model.checkpoint);
  model.config.gate_score = score;
  return model;
}

struct Reading {
  std::vector<std::vector<float>> logits;
  std::vector<GateRecorder::Layer> layers;
};

// Of kText, computed by the last of `ranks` ranks in chunks.
Reading Read(const Model& model, int ranks = 1, size_t chunk = kText.size()) {
  JobOptions options = BundledModel(ranks);
  options.logit_rows = static_cast<int64_t>(kText.size());
  Reading reading;
  const absl::Status status =
      RunLocalWorld(ranks, [&](Transport& transport) -> absl::Status {
        NoSink sink;
        GateRecorder recorder;
        auto rank =
            RankRuntime::Create(options, model, transport, sink, &recorder);
        if (!rank.ok()) return rank.status();
        SequenceRunner runner(**rank);
        const bool computes = ToIndex(transport.rank()) == ranks - 1;
        std::vector<std::vector<float>> logits;
        for (size_t first = 0; first < kText.size(); first += chunk) {
          std::span<const int32_t> part;
          if (computes) {
            part = std::span(kText).subspan(
                first, std::min(chunk, kText.size() - first));
          }
          if (auto s = runner.Append(part, logits); !s.ok()) return s;
        }
        if (computes) reading = {std::move(logits), std::move(recorder.layers)};
        return absl::OkStatus();
      });
  EXPECT_TRUE(status.ok()) << status;
  return reading;
}

TEST(SigmoidGateTest, ScoresEachExpertByItself) {
  const Reading softmax = Read(ModelWith(GateScore::kSoftmax));
  const Reading sigmoid = Read(ModelWith(GateScore::kSigmoid));

  // The first gate sees the same states; a softmax tells its logits up to a
  // constant, a sigmoid all of them.
  for (size_t token = 0; token < kText.size(); ++token) {
    const auto& p = softmax.layers[0].probabilities[token];
    const auto& s = sigmoid.layers[0].probabilities[token];
    const auto logit = [&](size_t e) {
      return std::log(double{s[e]} / (1 - double{s[e]}));
    };
    for (size_t e = 0; e < p.size(); ++e) {
      ASSERT_GT(s[e], 0);
      ASSERT_LT(s[e], 1);
      EXPECT_NEAR(logit(e) - logit(0), std::log(double{p[e]} / p[0]), 1e-3);
    }
    EXPECT_EQ(sigmoid.layers[0].experts[token],
              softmax.layers[0].experts[token]);
    // norm_topk_prob: of the chosen ones' scores.
    float sum = 0;
    for (const int32_t e : sigmoid.layers[0].experts[token]) {
      sum += s[static_cast<size_t>(e)];
    }
    for (size_t k = 0; k < sigmoid.layers[0].weights[token].size(); ++k) {
      const auto e = static_cast<size_t>(sigmoid.layers[0].experts[token][k]);
      EXPECT_NEAR(sigmoid.layers[0].weights[token][k], s[e] / sum, 1e-6);
    }
  }
  EXPECT_NE(sigmoid.logits, softmax.logits);
}

TEST(SigmoidGateTest, IsExactOverRanksAndChunks) {
  const Model model = ModelWith(GateScore::kSigmoid);
  const Reading whole = Read(model);
  for (const int ranks : {1, 3}) {
    const Reading other = Read(model, ranks, 5);
    ASSERT_EQ(other.logits.size(), whole.logits.size());
    for (size_t i = 0; i < whole.logits.size(); ++i) {
      EXPECT_EQ(std::memcmp(whole.logits[i].data(), other.logits[i].data(),
                            whole.logits[i].size() * sizeof(float)),
                0)
          << ranks << " ranks, token " << i;
    }
  }
}

}  // namespace
}  // namespace portolan
