// The bundled model against goldens of an independent float32 reference.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/model_fixture.h"

namespace portolan {
namespace {

struct GoldenPrompt {
  std::string domain;
  std::vector<int32_t> ids;
  std::vector<std::vector<std::vector<int32_t>>> experts;  // [layer][token][k]
  std::vector<float> last_logits;
  std::vector<int32_t> greedy_ids;

  std::vector<int32_t> Teacher() const {
    std::vector<int32_t> all = ids;
    all.insert(all.end(), greedy_ids.begin(), greedy_ids.end() - 1);
    return all;
  }
};

std::vector<GoldenPrompt> ReadGoldens() {
  std::ifstream file(PORTOLAN_SOURCE_DIR "/tests/data/tiny_moe_golden.json");
  const auto json = nlohmann::json::parse(file);
  std::vector<GoldenPrompt> prompts;
  for (const auto& item : json["prompts"]) {
    GoldenPrompt prompt;
    prompt.domain = item["domain"];
    prompt.ids = item["ids"].get<std::vector<int32_t>>();
    prompt.last_logits = item["last_logits"].get<std::vector<float>>();
    prompt.greedy_ids = item["greedy_ids"].get<std::vector<int32_t>>();
    for (const auto& layer : item["routing"]) {
      prompt.experts.emplace_back();
      for (const auto& token : layer) {
        prompt.experts.back().push_back(
            token["experts"].get<std::vector<int32_t>>());
      }
    }
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

// Logits and gates of every token of a text.
struct Reading {
  std::vector<std::vector<float>> logits;  // [token][vocab]
  std::vector<GateRecorder::Layer> layers;
};

std::vector<Reading> ReadAll(JobOptions options,
                             const std::vector<std::vector<int32_t>>& texts) {
  std::vector<Reading> readings;
  options.logit_rows = options.tokens_per_step;
  const absl::Status status =
      RunJob(options, [&](const Model& model, RunWorld run_world) {
        return run_world([&](Transport& transport) -> absl::Status {
          for (const std::vector<int32_t>& text : texts) {
            GateRecorder recorder;
            NoSink sink;
            auto rank =
                RankRuntime::Create(options, model, transport, sink, &recorder);
            if (!rank.ok()) return rank.status();
            SequenceRunner runner(**rank);
            Reading reading;
            if (auto s = runner.Append(text, reading.logits); !s.ok()) return s;
            reading.layers = std::move(recorder.layers);
            readings.push_back(std::move(reading));
          }
          return absl::OkStatus();
        });
      });
  EXPECT_TRUE(status.ok()) << status;
  return readings;
}

std::vector<std::vector<int32_t>> Texts(
    const std::vector<GoldenPrompt>& prompts) {
  std::vector<std::vector<int32_t>> texts;
  for (const GoldenPrompt& prompt : prompts) texts.push_back(prompt.Teacher());
  return texts;
}

JobOptions Reference() {
  JobOptions options = BundledModel();
  options.activations = ActivationDtype::kF32;
  options.batch = 1;
  return options;
}

int32_t ArgMax(const std::vector<float>& row) {
  return static_cast<int32_t>(std::max_element(row.begin(), row.end()) -
                              row.begin());
}

TEST(GoldenTest, TheFloatReferenceMatchesTheGoldens) {
  const std::vector<GoldenPrompt> prompts = ReadGoldens();
  ASSERT_EQ(prompts.size(), 8);

  const std::vector<Reading> readings = ReadAll(Reference(), Texts(prompts));

  ASSERT_EQ(readings.size(), prompts.size());
  double largest_error = 0;
  for (size_t p = 0; p < prompts.size(); ++p) {
    const GoldenPrompt& golden = prompts[p];
    const size_t last = golden.ids.size() - 1;
    for (size_t v = 0; v < golden.last_logits.size(); ++v) {
      largest_error = std::max<double>(
          largest_error,
          std::abs(readings[p].logits[last][v] - golden.last_logits[v]));
    }
    for (size_t l = 0; l < golden.experts.size(); ++l) {
      for (size_t t = 0; t < golden.experts[l].size(); ++t) {
        ASSERT_EQ(readings[p].layers[l].experts[t], golden.experts[l][t])
            << golden.domain << ", layer " << l << ", token " << t;
      }
    }
    for (size_t i = 0; i < golden.greedy_ids.size(); ++i) {
      ASSERT_EQ(ArgMax(readings[p].logits[last + i]), golden.greedy_ids[i])
          << golden.domain << ", generated token " << i;
    }
  }
  std::printf("float32 reference: largest logit error %.2e\n", largest_error);
  EXPECT_LT(largest_error, 1e-3);
}

// The two largest values' difference.
double LogitMargin(std::vector<float> row) {
  std::partial_sort(row.begin(), row.begin() + 2, row.end(), std::greater<>());
  return row[0] - row[1];
}

// How far the last chosen expert is ahead of the first one left out.
double GateMargin(std::vector<float> row, size_t top_k) {
  std::sort(row.begin(), row.end(), std::greater<>());
  return row[top_k - 1] - row[top_k];
}

// The least difference between neighbours among the chosen experts: their order
// is part of the comparison.
double OrderMargin(std::vector<float> row, size_t top_k) {
  std::sort(row.begin(), row.end(), std::greater<>());
  double margin = GateMargin(row, top_k);
  for (size_t i = 0; i + 1 < top_k; ++i) {
    margin = std::min<double>(margin, row[i] - row[i + 1]);
  }
  return margin;
}

double LargestDifference(const std::vector<float>& a,
                         const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max<double>(largest, std::abs(a[i] - b[i]));
  }
  return largest;
}

struct Deviation {
  std::string what;
  double margin;
  bool is_gate;
};

// Compares a reading with the reference, up to the first token that chose
// otherwise. What that one errs by is no part of the errors that allow it.
struct Comparison {
  double gate_error = 0;
  double logit_error = 0;
  std::vector<Deviation> deviations;
  int64_t tokens = 0;

  void Compare(const std::string& name, const Reading& reference,
               const Reading& reading) {
    for (size_t t = 0; t < reference.logits.size(); ++t) {
      double gates = 0;
      if (!SameExperts(name, reference, reading, t, gates)) return;
      gate_error = std::max(gate_error, gates);
      const auto& want = reference.logits[t];
      const auto& have = reading.logits[t];
      if (ArgMax(want) != ArgMax(have)) {
        deviations.push_back(
            {name + ", token " + std::to_string(t) + ": another greedy token",
             LogitMargin(want), false});
        return;
      }
      logit_error = std::max(logit_error, LargestDifference(want, have));
      ++tokens;
    }
  }

  // `error`: the largest of the token's gate probabilities.
  bool SameExperts(const std::string& name, const Reading& reference,
                   const Reading& reading, size_t t, double& error) {
    for (size_t l = 0; l < reference.layers.size(); ++l) {
      const auto& want = reference.layers[l];
      const auto& have = reading.layers[l];
      error = std::max(error, LargestDifference(want.probabilities[t],
                                                have.probabilities[t]));
      if (want.experts[t] == have.experts[t]) continue;
      const size_t top_k = want.experts[t].size();
      auto a = want.experts[t];
      auto b = have.experts[t];
      std::sort(a.begin(), a.end());
      std::sort(b.begin(), b.end());
      const bool same_set = a == b;
      const double margin = same_set ? OrderMargin(want.probabilities[t], top_k)
                                     : GateMargin(want.probabilities[t], top_k);
      deviations.push_back(
          {name + ", token " + std::to_string(t) + ", layer " +
               std::to_string(l) +
               (same_set ? ": another order of experts" : ": another expert"),
           margin, true});
      return false;
    }
    return true;
  }
};

TEST(GoldenTest, BfloatActivationsDeviateOnlyWhereTheReferenceIsUndecided) {
  const std::vector<GoldenPrompt> prompts = ReadGoldens();
  const std::vector<std::vector<int32_t>> texts = Texts(prompts);

  const std::vector<Reading> reference = ReadAll(Reference(), texts);
  const std::vector<Reading> readings = ReadAll(BundledModel(), texts);

  Comparison comparison;
  for (size_t p = 0; p < prompts.size(); ++p) {
    comparison.Compare(prompts[p].domain, reference[p], readings[p]);
  }
  std::printf("bf16: %lld tokens, largest gate error %.2e, logit error %.3f\n",
              static_cast<long long>(comparison.tokens), comparison.gate_error,
              comparison.logit_error);
  for (const Deviation& deviation : comparison.deviations) {
    std::printf("  %s (margin %.2e)\n", deviation.what.c_str(),
                deviation.margin);
    EXPECT_LT(deviation.margin, deviation.is_gate ? comparison.gate_error
                                                  : comparison.logit_error);
  }
  EXPECT_LT(comparison.gate_error, 1e-2);
  EXPECT_LT(comparison.logit_error, 0.2);
  EXPECT_GE(comparison.tokens, 65);
}

}  // namespace
}  // namespace portolan
