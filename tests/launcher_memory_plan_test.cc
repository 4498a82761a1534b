#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <regex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "experts/expert_slot.h"
#include "launcher/memory_plan.h"
#include "runtime/base/mutex.h"
#include "tests/model_fixture.h"
#include "tests/tiny_checkpoint.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;

JobOptions Small(int ranks, const std::string& memory = "all") {
  JobOptions options = BundledModel(ranks);
  options.needs_tokenizer = false;
  options.batch = 2;
  options.kv_tokens = 100;
  options.expert_memory = memory;
  return options;
}

std::vector<RankMemory> PlanAll(const JobOptions& options, const Model& model) {
  std::vector<RankMemory> ranks;
  for (int rank = 0; rank < options.ranks; ++rank) {
    ranks.push_back(*PlanRankMemory(options, model, rank, options.ranks));
  }
  return ranks;
}

TEST(MemoryPlanTest, ReadsNoByteOfAnyTensor) {
  const Model model = *OpenModel(BundledModel().model_dir);

  ASSERT_TRUE(PlanRankMemory(Small(1), model, 0, 1).ok());

  const Checkpoint::BytesRead read = model.checkpoint->bytes_read();
  EXPECT_EQ(read.metadata + read.dense + read.expert, 0u);
}

// The figures of the plan are those of the ranks that then run.
TEST(MemoryPlanTest, TheRunningRanksHoldWhatThePlanSays) {
  for (const int ranks : {1, 2, 3}) {
    for (const char* memory : {"100%", "25%", "300KB"}) {
      SCOPED_TRACE(absl::StrCat(ranks, " ranks, ", memory));
      const JobOptions options = Small(ranks, memory);
      const absl::Status status =
          RunJob(options, [&](const Model& model, RunWorld run_world) {
            const std::vector<RankMemory> plan = PlanAll(options, model);
            EXPECT_EQ(plan[0].dense_bytes, model.weights.bytes());
            return run_world([&](Transport& transport) -> absl::Status {
              NoSink sink;
              auto rank = RankRuntime::Create(options, model, transport, sink);
              if (!rank.ok()) return rank.status();
              const RankMemory& mine =
                  plan[static_cast<size_t>(ToIndex(transport.rank()))];
              EXPECT_EQ(mine.experts.bytes(), (*rank)->expert_memory_bytes());
              EXPECT_EQ(mine.kv_bytes, (*rank)->kv().bytes());
              EXPECT_EQ(mine.rope_bytes, (*rank)->forward().rope_bytes());
              EXPECT_GT(mine.rope_bytes, 0);
              EXPECT_EQ(mine.staging_bytes, (*rank)->staging_bytes());
              EXPECT_EQ(mine.history_bytes,
                        HistoryBytes((*rank)->history().shape()));
              return absl::OkStatus();
            });
          });
      EXPECT_TRUE(status.ok()) << status;
    }
  }
}

TEST(MemoryPlanTest, QuantisedWeightsTakeTheSlotsAndStagingOfTheirPack) {
  const TempDir dir;
  for (const char* format : {"", "int8"}) {
    std::string command = absl::StrCat(PORTOLAN_PROGRAM, " pack --model ",
                                       BundledModel().model_dir, " --pack-dir ",
                                       dir.path(), " >/dev/null 2>&1");
    if (*format != 0) absl::StrAppend(&command, " --quantize ", format);
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
  }
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kInt8}) {
    JobOptions options = Small(1, "25%");
    options.pack_dir = dir.path();
    options.weights = format;
    options.dense_weights = format;
    const absl::Status status =
        RunJob(options, [&](const Model& model, RunWorld run_world) {
          const RankMemory plan = *PlanRankMemory(options, model, 0, 1);
          EXPECT_EQ(plan.dense_bytes, model.weights.bytes());
          return run_world([&](Transport& transport) -> absl::Status {
            NoSink sink;
            auto rank = RankRuntime::Create(options, model, transport, sink);
            if (!rank.ok()) return rank.status();
            EXPECT_EQ(plan.experts.bytes(), (*rank)->expert_memory_bytes());
            EXPECT_EQ(plan.staging_bytes, 0);
            EXPECT_EQ((*rank)->staging_bytes(), 0);
            return absl::OkStatus();
          });
        });
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(MemoryPlanTest, WhatPredictorsAndMailboxesKeepIsCountedWhereTheyAre) {
  const Model model = *OpenModel(BundledModel().model_dir);
  JobOptions options = Small(2, "25%");
  const auto memory = [&](int rank) {
    return *PlanRankMemory(options, model, rank, options.ranks);
  };
  options.policy = "lru";
  EXPECT_EQ(memory(0).foresight_bytes, 0);
  EXPECT_EQ(memory(0).mailbox_bytes, 0);

  options.policy = "fmoe";
  const int64_t few = memory(0).foresight_bytes;
  options.history_capacity *= 10;
  const int64_t tracks = memory(0).foresight_bytes;
  // Each token of a step has a number for each map.
  EXPECT_EQ(tracks - few, options.tokens_per_step * 9000 * 4);

  options.history_file = "history";
  EXPECT_GT(memory(1).mailbox_bytes, 0);
  EXPECT_GT(memory(0).mailbox_bytes, memory(1).mailbox_bytes);
  EXPECT_LT(memory(1).mailbox_bytes, int64_t{520} << 20);
  options.shares_history = true;
  const HistoryMailbox::Options shared;
  EXPECT_GE(memory(1).mailbox_bytes,
            static_cast<int64_t>(shared.max_incoming_bytes +
                                 shared.max_outgoing_bytes));
}

TEST(MemoryPlanTest, OwnedExpertsOfAllRanksAreTheModels) {
  const Model model = *OpenModel(BundledModel().model_dir);
  for (const int ranks : {1, 2, 3, 5}) {
    int64_t owned = 0;
    for (const RankMemory& rank : PlanAll(Small(ranks), model)) {
      owned += rank.experts.owned_slots;
    }
    EXPECT_EQ(owned, 8 * 32);
  }
}

TEST(MemoryPlanTest, ADenseLayerHasNoSlots) {
  const TempDir dir;
  WriteTinyModel(dir, {.dense_layer = 1});
  const Model model = *OpenModel(dir.path());
  JobOptions options = Small(1);
  options.model_dir = dir.path();

  const auto plan = PlanRankMemory(options, model, 0, 1);

  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->experts.owned_slots, 3);
  EXPECT_EQ(plan->slots_per_layer(), 3);
}

TEST(MemoryPlanTest, ABudgetBelowTheMinimumIsRefusedNamingIt) {
  const Model model = *OpenModel(BundledModel().model_dir);
  const int64_t slot = ExpertSlotBytes(model.experts.shape());

  const auto plan = PlanRankMemory(Small(1, "100KB"), model, 0, 1);

  ASSERT_TRUE(absl::IsInvalidArgument(plan.status()));
  EXPECT_THAT(std::string(plan.status().message()),
              HasSubstr(absl::StrCat(2 * slot)));
}

// A job with this much memory, faked; whether it starts.
absl::Status Start(const JobOptions& options) {
  return RunJob(options,
                [](const Model&, RunWorld) { return absl::OkStatus(); });
}

TEST(MemoryPlanTest, AllIsRefusedWhereItDoesNotFitAndTheRemedyWorks) {
  for (const int ranks : {1, 3}) {
    SCOPED_TRACE(ranks);
    JobOptions options = Small(ranks);
    const Model model = *OpenModel(options.model_dir);
    const std::vector<RankMemory> plan = PlanAll(options, model);
    const int64_t wanted = BytesTogether(plan, /*processes=*/false);

    options.memory_available = wanted;
    EXPECT_TRUE(Start(options).ok());
    options.memory_available = wanted - 1;
    const absl::Status refused = Start(options);

    ASSERT_TRUE(absl::IsResourceExhausted(refused)) << refused;
    const std::string message(refused.message());
    std::smatch remedy;
    ASSERT_TRUE(std::regex_search(message, remedy,
                                  std::regex("--expert-memory ([0-9]+) ")))
        << message;
    options.expert_memory = remedy[1];
    EXPECT_LE(BytesTogether(PlanAll(options, model), false), wanted - 1);
    EXPECT_TRUE(Start(options).ok());
  }
}

TEST(MemoryPlanTest, AStatedBudgetIsTheUsersWord) {
  JobOptions options = Small(1, "100%");
  options.memory_available = 1 << 20;
  EXPECT_TRUE(Start(options).ok());
}

TEST(MemoryPlanTest, WhereNotEvenTheMinimumFitsTheErrorSaysSo) {
  JobOptions options = Small(1);
  options.memory_available = 1 << 20;

  const absl::Status refused = Start(options);

  ASSERT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("lower --batch"));
}

TEST(MemoryPlanTest, ThreadsShareTheDenseWeightsAndProcessesDoNot) {
  const Model model = *OpenModel(BundledModel().model_dir);
  const std::vector<RankMemory> plan = PlanAll(Small(3), model);
  EXPECT_EQ(BytesTogether(plan, true) - BytesTogether(plan, false),
            2 * (plan[0].dense_bytes + plan[0].program_bytes));
}

}  // namespace
}  // namespace portolan
