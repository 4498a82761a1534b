#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "comm/local_world.h"
#include "runtime/serving/history_gather.h"
#include "runtime/serving/step_loop.h"
#include "tests/model_fixture.h"

namespace portolan {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(HistoryGatherTest, RankZeroGetsWhatTheOthersLearntInTheirOrder) {
  std::vector<std::vector<std::string>> got(3);
  const absl::Status status =
      RunLocalWorld(3, [&](Transport& transport) -> absl::Status {
        const int rank = ToIndex(transport.rank());
        HistoryMailbox mailbox({});
        for (int i = 0; i < 2; ++i) {
          mailbox.Send({.format = i == 0 ? HistoryFormat::kSequence
                                         : HistoryFormat::kIteration,
                        .key = "key",
                        .map = std::string(1, static_cast<char>('a' + rank)) +
                               std::to_string(i)});
        }
        const absl::Status gathered =
            GatherHistory(transport, mailbox, absl::Seconds(30));
        for (const HistoryRow& row : mailbox.TakeIncoming(10)) {
          got[static_cast<size_t>(rank)].push_back(row.map);
        }
        return gathered;
      });

  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(got[0], ElementsAre("b0", "b1", "c0", "c1"));
  EXPECT_THAT(got[1], IsEmpty());
  EXPECT_THAT(got[2], IsEmpty());
}

TEST(HistoryGatherTest, RanksThatLearntNothingSendNothing) {
  const absl::Status status =
      RunLocalWorld(2, [&](Transport& transport) -> absl::Status {
        HistoryMailbox mailbox({});
        const absl::Status gathered =
            GatherHistory(transport, mailbox, absl::Seconds(30));
        EXPECT_THAT(mailbox.TakeIncoming(10), IsEmpty());
        return gathered;
      });
  EXPECT_TRUE(status.ok()) << status;
}

// Two short sequences, other ones on each rank.
class OwnSequences : public RequestFeed {
 public:
  explicit OwnSequences(Rank rank) : rank_(rank) {}

  absl::Status Poll(Engine& engine) override {
    if (closed_) return absl::OkStatus();
    closed_ = true;
    for (int64_t id = 0; id < 2; ++id) {
      Request request;
      request.id = id;
      for (int32_t i = 0; i < 6; ++i) {
        request.prompt.push_back(
            (i * 739 + static_cast<int32_t>(id) * 31 + ToIndex(rank_) * 97) %
            4093);
      }
      request.max_tokens = 3;
      if (absl::Status s = engine.Add(request); !s.ok()) return s;
    }
    return absl::OkStatus();
  }
  bool closed() const override { return closed_; }
  absl::Status WaitForWork() override { return absl::OkStatus(); }

 private:
  const Rank rank_;
  bool closed_ = false;
};

int32_t SequencesLearntBy(int ranks) {
  JobOptions options = BundledModel(ranks);
  options.policy = "adaptive";
  options.expert_memory = "25%";
  options.history_file =
      std::filesystem::path(testing::TempDir()) / "gathered_history";
  std::filesystem::remove(options.history_file);
  int32_t learnt = -1;
  const absl::Status status =
      RunJob(options, [&](const Model& model, RunWorld run_world) {
        const absl::Status run =
            run_world([&](Transport& transport) -> absl::Status {
              NoSink sink;
              auto rank = RankRuntime::Create(options, model, transport, sink);
              if (!rank.ok()) return rank.status();
              OwnSequences feed(transport.rank());
              StepLoop loop((*rank)->exchange(), (*rank)->engine(), feed,
                            nullptr, (*rank)->observer(), (*rank)->profile());
              if (absl::Status s = loop.Run(); !s.ok()) return s;
              if (absl::Status s = (*rank)->SaveHistory(); !s.ok()) return s;
              if (transport.rank() != Rank{0}) return absl::OkStatus();
              History saved((*rank)->history().shape());
              const absl::Status loaded = saved.Load(options.history_file);
              learnt = saved.sequences().size();
              return loaded;
            });
        return run;
      });
  EXPECT_TRUE(status.ok()) << status;
  std::filesystem::remove(options.history_file);
  return learnt;
}

TEST(HistoryGatherTest, TheFileOfAJobHoldsTheSequencesOfAllItsRanks) {
  EXPECT_EQ(SequencesLearntBy(1), 2);
  EXPECT_EQ(SequencesLearntBy(3), 6);
}

}  // namespace
}  // namespace portolan
