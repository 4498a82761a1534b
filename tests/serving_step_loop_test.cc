// Ranks as threads that generate together: engine, batcher and step loop over
// a tiny random model.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "runtime/base/mutex.h"
#include "runtime/serving/step_loop.h"
#include "tests/model_fixture.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;

struct Outcome {
  std::vector<int32_t> tokens;
  FinishReason reason = FinishReason::kCancelled;

  bool operator==(const Outcome&) const = default;
};

using Outcomes = std::map<int64_t, Outcome>;

// Of one rank.
class OutcomeSink : public TokenSink {
 public:
  bool OnToken(int64_t id, const GeneratedToken& token) override {
    outcomes[id].tokens.push_back(token.token);
    return false;
  }
  void OnFinish(int64_t id, const SequenceEnd& end) override {
    outcomes[id].reason = end.reason;
  }

  Outcomes outcomes;
};

// Admits requests at one step border each and does `at_poll` there.
class ScriptedFeed : public RequestFeed {
 public:
  using AtPoll = std::function<absl::Status(int64_t poll, Engine& engine)>;

  ScriptedFeed(std::vector<Request> requests, AtPoll at_poll)
      : requests_(std::move(requests)), at_poll_(std::move(at_poll)) {}

  absl::Status Poll(Engine& engine) override {
    if (at_poll_ != nullptr) {
      if (auto status = at_poll_(poll_, engine); !status.ok()) return status;
    }
    ++poll_;
    if (closed()) return absl::OkStatus();
    return engine.Add(requests_[next_++]);
  }
  bool closed() const override { return next_ == requests_.size(); }
  absl::Status WaitForWork() override { return absl::OkStatus(); }

 private:
  const std::vector<Request> requests_;
  const AtPoll at_poll_;
  size_t next_ = 0;
  int64_t poll_ = 0;
};

JobOptions TinyModel(int ranks, int32_t batch) {
  JobOptions options = BundledModel(ranks);
  options.model_dir = PORTOLAN_SOURCE_DIR "/tests/data/models/qwen3_moe_bf16";
  options.needs_tokenizer = false;
  options.batch = batch;
  return options;
}

// Prompts of 1, 8, 15 ... tokens, each with so many to generate that it ends
// inside the model's context of 64.
std::vector<Request> SomeRequests() {
  std::vector<Request> requests;
  for (int32_t i = 0; i < 7; ++i) {
    Request request;
    request.id = i;
    for (int32_t t = 0; t <= 7 * i; ++t) {
      request.prompt.push_back((5 * i + 3 * t) % 72);
    }
    request.max_tokens = 12;
    request.sampling.temperature = i % 2 == 0 ? 0 : 0.9;
    request.sampling.seed = static_cast<uint64_t>(i);
    requests.push_back(request);
  }
  return requests;
}

// Runs `requests` on the rank that `place` names for their id; what each rank's
// loop returned goes to `statuses`.
Outcomes Generate(const JobOptions& options,
                  const std::vector<Request>& requests,
                  const std::function<int(int64_t)>& place,
                  std::vector<absl::Status>* statuses = nullptr,
                  const ScriptedFeed::AtPoll& at_poll_of_last = nullptr) {
  Mutex mu;
  Outcomes all;
  std::vector<absl::Status> ended(static_cast<size_t>(options.ranks));
  const absl::Status of_job = RunJob(options, [&](const Model& model,
                                                  RunWorld run_world) {
    return run_world([&](Transport& transport) -> absl::Status {
      const int rank = ToIndex(transport.rank());
      OutcomeSink sink;
      auto runtime = RankRuntime::Create(options, model, transport, sink);
      if (!runtime.ok()) return runtime.status();
      std::vector<Request> own;
      for (const Request& request : requests) {
        if (place(request.id) == rank) own.push_back(request);
      }
      ScriptedFeed feed(
          own, rank == transport.world_size() - 1 ? at_poll_of_last : nullptr);
      StepLoop loop((*runtime)->exchange(), (*runtime)->engine(), feed);
      const absl::Status status = loop.Run();
      MutexLock lock(mu);
      ended[static_cast<size_t>(rank)] = status;
      all.merge(sink.outcomes);
      return status;
    });
  });
  if (statuses == nullptr) {
    EXPECT_TRUE(of_job.ok()) << of_job;
  } else {
    *statuses = ended;
  }
  return all;
}

class StepLoopTest : public ::testing::Test {
 protected:
  static const Outcomes& Alone() {
    static const Outcomes outcomes =
        Generate(TinyModel(1, 1), SomeRequests(), [](int64_t) { return 0; });
    return outcomes;
  }
};

TEST_F(StepLoopTest, EveryRequestEndsWithTheTokensItAskedFor) {
  ASSERT_EQ(Alone().size(), 7);
  for (const auto& [id, outcome] : Alone()) {
    EXPECT_EQ(outcome.tokens.size(), 12) << id;
    EXPECT_EQ(outcome.reason, FinishReason::kLength) << id;
  }
}

TEST_F(StepLoopTest, ASequenceGeneratesTheSameInAnyCompany) {
  for (const int ranks : {1, 2, 3}) {
    for (const int32_t batch : {1, 3}) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks, batch " << batch);
      EXPECT_EQ(
          Generate(TinyModel(ranks, batch), SomeRequests(),
                   [&](int64_t id) { return static_cast<int>(id) % ranks; }),
          Alone());
    }
  }
}

TEST_F(StepLoopTest, RanksWithoutARequestTakePart) {
  EXPECT_EQ(
      Generate(TinyModel(3, 4), SomeRequests(), [](int64_t) { return 1; }),
      Alone());
}

TEST_F(StepLoopTest, ASequenceThatGaveItsPagesBackGoesOnWithTheSameTokens) {
  JobOptions options = TinyModel(1, 4);
  options.kv_tokens = 64;  // of up to 4 x 55

  EXPECT_EQ(Generate(options, SomeRequests(), [](int64_t) { return 0; }),
            Alone());
}

TEST_F(StepLoopTest, AnotherAttemptGoesOnBehindTheTokensOfTheFirst) {
  std::vector<Request> requests = SomeRequests();
  Outcomes expected = Alone();
  for (Request& request : requests) {
    std::vector<int32_t>& tokens = expected[request.id].tokens;
    const auto done = tokens.begin() + request.id;
    request.generated.assign(tokens.begin(), done);
    tokens.erase(tokens.begin(), done);
  }

  EXPECT_EQ(Generate(TinyModel(2, 3), requests,
                     [](int64_t id) { return static_cast<int>(id) % 2; }),
            expected);
}

TEST_F(StepLoopTest, AStopTokenEndsASequenceAndIsDelivered) {
  std::vector<Request> requests = {SomeRequests()[3]};
  const std::vector<int32_t>& tokens = Alone().at(3).tokens;
  requests[0].stop_tokens = {tokens[4]};

  const Outcomes outcomes =
      Generate(TinyModel(1, 1), requests, [](int64_t) { return 0; });

  const auto first = std::find(tokens.begin(), tokens.end(), tokens[4]);
  EXPECT_EQ(outcomes.at(3).tokens,
            std::vector<int32_t>(tokens.begin(), first + 1));
  EXPECT_EQ(outcomes.at(3).reason, FinishReason::kStop);
}

TEST_F(StepLoopTest, ACancelledSequenceEndsAndTheOthersStayTheSame) {
  const Outcomes outcomes = Generate(
      TinyModel(1, 7), SomeRequests(), [](int64_t) { return 0; }, nullptr,
      [](int64_t poll, Engine& engine) {
        if (poll == 4) engine.Cancel(0);
        return absl::OkStatus();
      });

  Outcomes expected = Alone();
  expected[0].tokens.resize(outcomes.at(0).tokens.size());
  expected[0].reason = FinishReason::kCancelled;
  EXPECT_LT(outcomes.at(0).tokens.size(), 12);
  EXPECT_EQ(outcomes, expected);
}

TEST_F(StepLoopTest, AnErrorOfOneRankEndsAllWithThatError) {
  std::vector<absl::Status> statuses;
  Generate(
      TinyModel(3, 2), SomeRequests(),
      [](int64_t id) { return static_cast<int>(id) % 3; }, &statuses,
      [](int64_t poll, Engine&) {
        return poll == 5 ? absl::DataLossError("page 7 of the list is torn")
                         : absl::OkStatus();
      });

  for (const absl::Status& status : statuses) {
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("page 7 of the list is torn"));
  }
}

TEST_F(StepLoopTest, ARequestThatCannotRunIsRefused) {
  std::vector<Request> requests = {SomeRequests()[0]};
  requests[0].prompt.assign(64, 1);
  std::vector<absl::Status> statuses;

  Generate(
      TinyModel(1, 1), requests, [](int64_t) { return 0; }, &statuses);

  EXPECT_TRUE(absl::IsInvalidArgument(statuses[0])) << statuses[0];
}

}  // namespace
}  // namespace portolan
