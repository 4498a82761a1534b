// Models some of whose layers have no experts: the layers that have are counted
// among themselves by cache, predictors, hints and traces.

#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "experts/policies.h"
#include "experts/replay.h"
#include "experts/trace.h"
#include "launcher/wiring.h"
#include "runtime/base/mutex.h"
#include "runtime/serving/engine.h"
#include "tests/tiny_checkpoint.h"

namespace portolan {
namespace {

constexpr int kLayers = 4;
constexpr int kSteps = 12;

class Recorder : public TokenSink {
 public:
  bool OnToken(int64_t id, const GeneratedToken& token) override {
    tokens[id].push_back(token.token);
    return false;
  }
  void OnFinish(int64_t, const SequenceEnd&) override {}

  std::map<int64_t, std::vector<int32_t>> tokens;
};

// A sequence of its own for every rank.
absl::Status Generate(RankRuntime& rank, Transport& transport) {
  Request request;
  request.id = ToIndex(transport.rank());
  for (int32_t i = 0; i < 7; ++i) {
    request.prompt.push_back((i * 11 + ToIndex(transport.rank())) % 50);
  }
  request.max_tokens = kSteps;
  if (auto added = rank.engine().Add(request); !added.ok()) return added;
  for (int step = 0; step < kSteps; ++step) {
    StepRecord record;
    record.rows_planned = rank.engine().PlanStep();
    record.has_work = record.rows_planned > 0;
    std::span<const Fp16> hints;
    if (rank.observer() != nullptr) hints = rank.observer()->step_hints();
    const auto records = rank.exchange().BeginStep(record, hints);
    if (!records.ok()) return records.status();
    int64_t tokens = 0;
    for (const StepRecord& of_rank : *records) tokens += of_rank.rows_planned;
    if (auto run = rank.engine().RunStep(tokens); !run.ok()) return run;
  }
  return absl::OkStatus();
}

class DenseLayersTest : public ::testing::TestWithParam<int> {
 protected:
  DenseLayersTest() {
    WriteTinyModel(
        dir_,
        {.dense_layer = GetParam(), .num_layers = kLayers, .num_experts = 6});
  }

  JobOptions Options(int ranks, const std::string& memory,
                     std::string_view policy) const {
    JobOptions options;
    options.model_dir = dir_.path();
    options.needs_tokenizer = false;
    options.ranks = ranks;
    options.threads = 1;
    options.batch = 2;
    options.expert_memory = memory;
    options.policy = policy;
    return options;
  }

  static std::map<int64_t, std::vector<int32_t>> Run(
      const JobOptions& options) {
    Mutex mu;
    std::map<int64_t, std::vector<int32_t>> tokens;
    const absl::Status status =
        RunJob(options, [&](const Model& model, const RunWorld& run_world) {
          return run_world([&](Transport& transport) -> absl::Status {
            Recorder sink;
            auto rank = RankRuntime::Create(options, model, transport, sink);
            if (!rank.ok()) return rank.status();
            if (auto ran = Generate(**rank, transport); !ran.ok()) return ran;
            MutexLock lock(mu);
            tokens.merge(sink.tokens);
            return absl::OkStatus();
          });
        });
    EXPECT_TRUE(status.ok()) << status;
    return tokens;
  }

  const TempDir dir_;
};

TEST_P(DenseLayersTest, EveryPolicyGivesTheTokensOfTheResidentRun) {
  for (const int ranks : {1, 2}) {
    const auto resident = Run(Options(ranks, "all", "lru"));
    ASSERT_EQ(resident.size(), static_cast<size_t>(ranks));
    for (const std::string_view policy : PolicyNames()) {
      SCOPED_TRACE(absl::StrCat(ranks, " ranks, ", std::string(policy)));
      EXPECT_EQ(Run(Options(ranks, "50%", policy)), resident);
    }
  }
}

TEST_P(DenseLayersTest, ATraceHoldsTheLayersWithExpertsAndCanBeReplayed) {
  JobOptions options = Options(1, "50%", "adaptive");
  options.trace_file = dir_.File("trace");
  Run(options);

  const auto trace = ReadTrace(options.trace_file);

  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->header.num_layers, kLayers - 1);
  EXPECT_EQ(trace->steps.size(), static_cast<size_t>(kSteps));
  for (const char* policy : {"lru", "gate-2", "fmoe", "adaptive", "oracle"}) {
    ReplayOptions replay;
    replay.expert_memory = "50%";
    replay.link = {.bytes_per_second = 1e9};
    const auto result = Replay(*trace, policy, replay, nullptr);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_GT(result->total.accesses(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(DenseLayer, DenseLayersTest,
                         ::testing::Values(0, 1, kLayers - 1));

}  // namespace
}  // namespace portolan
