// Experts beyond memory change no bit: every policy, budget, number of ranks
// and batch gives the tokens and logits of the resident run.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "experts/expert_slot.h"
#include "experts/policies.h"
#include "runtime/base/mutex.h"
#include "tests/model_fixture.h"

namespace portolan {
namespace {

constexpr int kSequences = 8;
constexpr int kGenerated = 4;

std::vector<int32_t> PromptOf(int sequence) {
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < 5 + sequence % 4; ++i) {
    prompt.push_back((sequence * 997 + i * 739 + 11) % 4093);
  }
  return prompt;
}

// What came of one sequence: prompt and greedy tokens, and the logits that the
// latter were chosen by.
struct Outcome {
  std::vector<int32_t> tokens;
  std::vector<float> logits;

  // Bitwise, unlike float's ==.
  friend bool operator==(const Outcome& a, const Outcome& b) {
    return a.tokens == b.tokens && a.logits.size() == b.logits.size() &&
           std::memcmp(a.logits.data(), b.logits.data(),
                       a.logits.size() * sizeof(float)) == 0;
  }
};

using Outcomes = std::map<int, Outcome>;

// Some sequences of one rank, prefilled in one step and then decoded together,
// in lock-step with the other ranks.
class BatchRunner {
 public:
  explicit BatchRunner(RankRuntime& rank) : rank_(rank) {}

  absl::Status Run(const std::vector<int>& sequences, int64_t all_tokens,
                   int64_t all_sequences, Outcomes& outcomes) {
    std::vector<State> states;
    for (const int id : sequences) states.push_back({.id = id});
    for (State& state : states) state.outcome.tokens = PromptOf(state.id);
    for (int step = 0; step < kGenerated; ++step) {
      const int64_t tokens = step == 0 ? all_tokens : all_sequences;
      if (auto s = Step(states, tokens); !s.ok()) return s;
    }
    for (State& state : states) {
      rank_.kv().Release(state.pages);
      if (rank_.observer() != nullptr) {
        rank_.observer()->OnSequenceEnd(state.id);
      }
      outcomes[state.id] = std::move(state.outcome);
    }
    return absl::OkStatus();
  }

 private:
  struct State {
    int id = 0;
    Outcome outcome = {};
    size_t computed = 0;
    std::vector<int32_t> pages = {};
  };

  absl::Status Step(std::vector<State>& states, int64_t tokens_of_all_ranks) {
    std::vector<ForwardSequence> step;
    for (State& state : states) {
      const std::span<const int32_t> tokens = state.outcome.tokens;
      PORTOLAN_CHECK(
          rank_.kv().Grow(state.pages, static_cast<int64_t>(tokens.size())));
      step.push_back({.id = state.id,
                      .tokens = tokens.subspan(state.computed),
                      .first_position = static_cast<int64_t>(state.computed),
                      .pages = state.pages});
      state.computed = tokens.size();
    }
    rank_.forward().Begin(step);
    StepRecord record;
    record.has_work = !step.empty();
    record.rows_planned = rank_.forward().num_tokens();
    std::span<const Fp16> hints;
    if (rank_.observer() != nullptr) hints = rank_.observer()->step_hints();
    if (auto begun = rank_.exchange().BeginStep(record, hints); !begun.ok()) {
      return begun.status();
    }
    auto logits = rank_.forward().Run(tokens_of_all_ranks);
    if (!logits.ok()) return logits.status();
    for (size_t i = 0; i < states.size(); ++i) {
      const auto row = logits->Row(static_cast<int64_t>(i));
      Outcome& outcome = states[i].outcome;
      outcome.logits.insert(outcome.logits.end(), row.begin(), row.end());
      outcome.tokens.push_back(
          static_cast<int32_t>(std::ranges::max_element(row) - row.begin()));
    }
    if (rank_.observer() != nullptr) rank_.observer()->OnStepEnd();
    return absl::OkStatus();
  }

  RankRuntime& rank_;
};

// All sequences after each other, on a single rank.
absl::Status RunOneByOne(RankRuntime& rank, Outcomes& outcomes) {
  BatchRunner runner(rank);
  for (int id = 0; id < kSequences; ++id) {
    auto s = runner.Run({id}, std::ssize(PromptOf(id)), 1, outcomes);
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

// All sequences, `batch` at a time, dealt out to the ranks in turn. At batch 1
// the first three only: enough for every rank to have one, and to have none.
// Adds the bytes that were read ahead to `prefetched`.
Outcomes RunAll(const JobOptions& options, const Model& model,
                const RunWorld& run_world, int batch, int64_t& prefetched) {
  Mutex mu;
  Outcomes all;
  const int num_sequences = batch == 1 ? 3 : kSequences;
  const absl::Status status =
      run_world([&](Transport& transport) -> absl::Status {
        NoSink sink;
        auto rank = RankRuntime::Create(options, model, transport, sink);
        if (!rank.ok()) return rank.status();
        BatchRunner runner(**rank);
        Outcomes mine;
        for (int first = 0; first < num_sequences; first += batch) {
          std::vector<int> sequences;
          int64_t tokens = 0;
          for (int id = first; id < first + batch; ++id) {
            tokens += std::ssize(PromptOf(id));
            if (id % transport.world_size() == ToIndex(transport.rank())) {
              sequences.push_back(id);
            }
          }
          auto s = runner.Run(sequences, tokens, batch, mine);
          if (!s.ok()) return s;
        }
        EXPECT_LE((*rank)->expert_counters().occupied_bytes_peak,
                  (*rank)->expert_memory_bytes());
        MutexLock lock(mu);
        prefetched += (*rank)->expert_metrics().prefetch_bytes();
        all.merge(mine);
        return absl::OkStatus();
      });
  EXPECT_TRUE(status.ok()) << status;
  return all;
}

JobOptions Offloading(int ranks, const std::string& memory,
                      std::string_view policy) {
  JobOptions options = BundledModel(ranks);
  options.needs_tokenizer = false;
  options.kv_tokens = 32 * kSequences;
  options.logit_rows = kSequences;
  options.tokens_per_step = 128;
  options.expert_memory = memory;
  options.policy = policy;
  return options;
}

// A history in which predictors find what the sequences of the test will do:
// each was run once before, by each predictor that learns.
std::string TaughtHistory() {
  const std::string path = std::filesystem::path(::testing::TempDir()) /
                           absl::StrCat("offload_exactness_history_", getpid());
  for (const char* policy : {"fmoe", "eam", "adaptive"}) {
    JobOptions options = Offloading(1, "50%", policy);
    options.history_file = path;
    const absl::Status status =
        RunJob(options, [&](const Model& model, RunWorld run_world) {
          return run_world([&](Transport& transport) -> absl::Status {
            NoSink sink;
            auto rank = RankRuntime::Create(options, model, transport, sink);
            if (!rank.ok()) return rank.status();
            Outcomes outcomes;
            if (auto s = RunOneByOne(**rank, outcomes); !s.ok()) return s;
            return (*rank)->SaveHistory();
          });
        });
    EXPECT_TRUE(status.ok()) << status;
  }
  return path;
}

class OffloadExactnessTest
    : public ::testing::TestWithParam<std::tuple<int, int>> {
 protected:
  // Resident, one rank, one sequence at a time.
  static const Outcomes& Reference() {
    static const Outcomes* const reference = [] {
      auto* outcomes = new Outcomes;
      const JobOptions options = Offloading(1, "100%", "lru");
      const absl::Status status =
          RunJob(options, [&](const Model& model, RunWorld run_world) {
            return run_world([&](Transport& transport) -> absl::Status {
              NoSink sink;
              auto rank = RankRuntime::Create(options, model, transport, sink);
              if (!rank.ok()) return rank.status();
              return RunOneByOne(**rank, *outcomes);
            });
          });
      EXPECT_TRUE(status.ok()) << status;
      return outcomes;
    }();
    return *reference;
  }

  static void ExpectSame(const Outcomes& outcomes) {
    EXPECT_FALSE(outcomes.empty());
    for (const auto& [id, outcome] : outcomes) {
      EXPECT_TRUE(outcome == Reference().at(id)) << "sequence " << id;
    }
  }
};

TEST_P(OffloadExactnessTest, EveryPolicyAndBudgetGivesTheBitsOfTheResidentRun) {
  const auto [ranks, batch] = GetParam();
  ASSERT_EQ(Reference().size(), static_cast<size_t>(kSequences));
  const std::string history = TaughtHistory();
  const absl::Status status = RunJob(
      Offloading(ranks, "100%", "lru"),
      [&, ranks = ranks, batch = batch](const Model& model,
                                        const RunWorld& run_world) {
        const std::string minimum =
            absl::StrCat(2 * ExpertSlotBytes(model.experts.shape()));
        for (const std::string_view policy : PolicyNames()) {
          int64_t prefetched = 0;
          for (const std::string& memory :
               {std::string("100%"), std::string("50%"), std::string("25%"),
                std::string("12.5%"), minimum}) {
            SCOPED_TRACE(std::string(policy) + " at " + memory);
            JobOptions options = Offloading(ranks, memory, policy);
            options.history_file = history;
            ExpectSame(RunAll(options, model, run_world, batch, prefetched));
          }
          // Or the equality would be that of demand alone.
          const bool reads_ahead = policy != "lru" && policy != "lfu";
          EXPECT_EQ(prefetched > 0, reads_ahead) << policy;
        }
        return absl::OkStatus();
      });
  EXPECT_TRUE(status.ok()) << status;
  std::filesystem::remove(history);
}

std::string NameOf(
    const ::testing::TestParamInfo<std::tuple<int, int>>& parameters) {
  return absl::StrCat("Ranks", std::get<0>(parameters.param), "Batch",
                      std::get<1>(parameters.param));
}

INSTANTIATE_TEST_SUITE_P(RanksAndBatch, OffloadExactnessTest,
                         ::testing::Combine(::testing::Values(1, 2, 3),
                                            ::testing::Values(1, 8)),
                         NameOf);

}  // namespace
}  // namespace portolan
