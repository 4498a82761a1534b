// Tiny random models of every supported family against goldens by Hugging Face
// transformers (tests/data/models/README.md).

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/model_fixture.h"

namespace portolan {
namespace {

struct Golden {
  std::vector<int32_t> tokens;
  std::vector<std::vector<float>> logits;
  std::vector<std::vector<std::vector<int32_t>>> experts;  // [MoE layer][token]
  std::vector<std::vector<std::vector<float>>> expert_weights;
  std::vector<int32_t> greedy;
};

Golden ReadGolden(const std::string& dir) {
  const auto json = nlohmann::json::parse(std::ifstream(dir + "/golden.json"));
  return {json["tokens"], json["logits"], json["experts"],
          json["expert_weights"], json["greedy"]};
}

class FamilyTest : public ::testing::TestWithParam<const char*> {
 protected:
  std::string dir() const {
    return std::string(PORTOLAN_SOURCE_DIR "/tests/data/models/") + GetParam();
  }

  JobOptions Options(int ranks) const {
    JobOptions options = BundledModel(ranks);
    options.model_dir = dir();
    options.needs_tokenizer = false;
    options.activations = ActivationDtype::kF32;
    options.logit_rows = options.tokens_per_step;
    return options;
  }

  // Logits of `text` on rank 0 of `ranks`, and what the gates said there.
  std::vector<std::vector<float>> Compute(int ranks, std::vector<int32_t> text,
                                          GateRecorder& recorder) {
    std::vector<std::vector<float>> logits;
    const JobOptions options = Options(ranks);
    const absl::Status status =
        RunJob(options, [&](const Model& model, RunWorld run_world) {
          return run_world([&](Transport& transport) -> absl::Status {
            const bool computes = transport.rank() == Rank{0};
            NoSink sink;
            auto rank = RankRuntime::Create(options, model, transport, sink,
                                            computes ? &recorder : nullptr);
            if (!rank.ok()) return rank.status();
            SequenceRunner runner(**rank);
            std::vector<std::vector<float>> none;
            return computes ? runner.Append(text, logits)
                            : runner.Append({}, none);
          });
        });
    EXPECT_TRUE(status.ok()) << status;
    return logits;
  }
};

TEST_P(FamilyTest, MatchesTransformers) {
  const Golden golden = ReadGolden(dir());
  GateRecorder recorder;
  std::vector<int32_t> text = golden.tokens;
  text.insert(text.end(), golden.greedy.begin(), golden.greedy.end() - 1);

  const auto logits = Compute(1, text, recorder);

  ASSERT_EQ(logits.size(), text.size());
  for (size_t t = 0; t < golden.logits.size(); ++t) {
    for (size_t v = 0; v < golden.logits[t].size(); ++v) {
      ASSERT_NEAR(logits[t][v], golden.logits[t][v], 1e-3)
          << "token " << t << ", vocabulary " << v;
    }
  }
  std::erase_if(recorder.layers,
                [](const auto& layer) { return layer.experts.empty(); });
  ASSERT_EQ(recorder.layers.size(), golden.experts.size());
  for (size_t l = 0; l < golden.experts.size(); ++l) {
    for (size_t t = 0; t < golden.experts[l].size(); ++t) {
      EXPECT_EQ(recorder.layers[l].experts[t], golden.experts[l][t]);
      for (size_t k = 0; k < golden.expert_weights[l][t].size(); ++k) {
        EXPECT_NEAR(recorder.layers[l].weights[t][k],
                    golden.expert_weights[l][t][k], 1e-4);
      }
    }
  }
  for (size_t i = 0; i < golden.greedy.size(); ++i) {
    const auto& row = logits[golden.tokens.size() - 1 + i];
    EXPECT_EQ(std::max_element(row.begin(), row.end()) - row.begin(),
              golden.greedy[i])
        << "generated token " << i;
  }
}

TEST_P(FamilyTest, HasTheSameBitsOnThreeRanks) {
  const Golden golden = ReadGolden(dir());
  GateRecorder one, three;
  EXPECT_EQ(Compute(1, golden.tokens, one), Compute(3, golden.tokens, three));
}

INSTANTIATE_TEST_SUITE_P(All, FamilyTest,
                         ::testing::Values("qwen3_moe_bf16",
                                           "qwen3_moe_tied_sharded_f32",
                                           "qwen3_moe_fused_bias_f16",
                                           "mixtral_bf16",
                                           "mixtral_fused_window_f32"));

}  // namespace
}  // namespace portolan
