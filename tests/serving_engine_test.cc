// The engine on the bundled model: what happens to sequences between steps, and
// that none of it changes a token.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>
#include <vector>

#include "launcher/wiring.h"
#include "runtime/kernels/kv_layout.h"
#include "runtime/serving/engine.h"
#include "tests/model_fixture.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

// Keeps what sequences generate; may end one by a "stop string".
class Recorder : public TokenSink {
 public:
  bool OnToken(int64_t id, const GeneratedToken& token) override {
    tokens[id].push_back(token.token);
    logprobs[id].emplace_back(token.logprobs.begin(), token.logprobs.end());
    return false;
  }
  void OnFinish(int64_t id, const SequenceEnd& end) override { ends[id] = end; }

  std::map<int64_t, std::vector<int32_t>> tokens;
  std::map<int64_t, std::vector<std::vector<TokenLogprob>>> logprobs;
  std::map<int64_t, SequenceEnd> ends;
};

// One rank with its engine, stepped by hand.
struct Stage {
  const Model& model;
  RankRuntime& rank;
  Recorder& sink;

  Engine& engine() { return rank.engine(); }
  void Step() {
    StepRecord record;
    record.rows_planned = engine().PlanStep();
    record.has_work = record.rows_planned > 0;
    ASSERT_TRUE(rank.exchange().BeginStep(record).ok());
    ASSERT_TRUE(engine().RunStep(record.rows_planned).ok());
  }
  void RunToTheEnd() {
    for (int step = 0; engine().HasWork(); ++step) {
      ASSERT_LT(step, 2000);
      Step();
    }
  }
};

void OnStage(const JobOptions& options, std::function<void(Stage&)> body) {
  const absl::Status status =
      RunJob(options, [&](const Model& model, RunWorld run_world) {
        return run_world([&](Transport& transport) -> absl::Status {
          Recorder sink;
          auto rank = RankRuntime::Create(options, model, transport, sink);
          if (!rank.ok()) return rank.status();
          Stage stage{model, **rank, sink};
          body(stage);
          return absl::OkStatus();
        });
      });
  EXPECT_TRUE(status.ok()) << status;
}

std::vector<int32_t> Text(int32_t length, int32_t salt = 0) {
  std::vector<int32_t> text;
  for (int32_t i = 0; i < length; ++i) {
    text.push_back((i * 739 + 11 + salt) % 4093);
  }
  return text;
}

Request Sampled(int64_t id, std::vector<int32_t> prompt, int64_t max_tokens) {
  Request request;
  request.id = id;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling.seed = 17 + static_cast<uint64_t>(id);
  request.num_logprobs = 3;
  return request;
}

JobOptions Options(int32_t batch = 4) {
  JobOptions options = BundledModel();
  options.batch = batch;
  options.tokens_per_step = 64;
  return options;
}

bool SameBits(const std::vector<std::vector<TokenLogprob>>& a,
              const std::vector<std::vector<TokenLogprob>>& b) {
  const auto same = [](const TokenLogprob& x, const TokenLogprob& y) {
    return x.token == y.token &&
           std::memcmp(&x.logprob, &y.logprob, sizeof(float)) == 0;
  };
  return std::ranges::equal(a, b, [&](const auto& x, const auto& y) {
    return std::ranges::equal(x, y, same);
  });
}

TEST(EngineTest, ACancelledSequenceFreesItsPagesAndSlotBeforeTheNextStep) {
  OnStage(Options(/*batch=*/1), [](Stage& stage) {
    const int32_t all = stage.rank.kv().num_free();
    ASSERT_TRUE(stage.engine().Add(Sampled(1, Text(40), 500)).ok());
    ASSERT_TRUE(stage.engine().Add(Sampled(2, Text(3, 1), 1)).ok());
    for (int i = 0; i < 3; ++i) stage.Step();
    EXPECT_EQ(stage.engine().num_waiting(), 1);
    EXPECT_EQ(stage.engine().room().sequences, 0);

    stage.engine().Cancel(1);
    EXPECT_EQ(stage.rank.kv().num_free(), all);
    stage.Step();

    EXPECT_EQ(stage.sink.ends.at(1).reason, FinishReason::kCancelled);
    EXPECT_THAT(stage.sink.tokens.at(2), SizeIs(1));
    EXPECT_EQ(stage.engine().room().sequences, 1);
  });
}

TEST(EngineTest, CountsTheTokensOfEachStep) {
  OnStage(Options(), [](Stage& stage) {
    ASSERT_TRUE(stage.engine().Add(Sampled(1, Text(10), 4)).ok());
    stage.RunToTheEnd();

    const Histogram& tokens = stage.engine().step_tokens();
    EXPECT_EQ(tokens.sum(), 10 + 3);
    EXPECT_EQ(tokens.counts()[0], 3u) << "a token each";
    EXPECT_EQ(tokens.counts()[2], 1u) << "the prompt";
  });
}

TEST(EngineTest, RoomCountsWhatSequencesMayStillGrowTo) {
  OnStage(Options(), [](Stage& stage) {
    const int64_t before = stage.engine().room().kv_tokens;
    ASSERT_TRUE(stage.engine().Add(Sampled(1, Text(10), 90)).ok());

    EXPECT_EQ(stage.engine().room().kv_tokens, before - 4 * kPageTokens);
    EXPECT_EQ(stage.engine().room().sequences, 3);
    stage.engine().Cancel(1);
    EXPECT_EQ(stage.engine().room().kv_tokens, before);
  });
}

TEST(EngineTest, APausedEngineKeepsItsSequencesAndGoesOnWithTheSameTokens) {
  std::vector<int32_t> undisturbed;
  OnStage(Options(), [&](Stage& stage) {
    ASSERT_TRUE(stage.engine().Add(Sampled(1, Text(10), 12)).ok());
    stage.RunToTheEnd();
    undisturbed = stage.sink.tokens.at(1);
  });

  OnStage(Options(), [&](Stage& stage) {
    ASSERT_TRUE(stage.engine().Add(Sampled(1, Text(10), 12)).ok());
    for (int i = 0; i < 5; ++i) stage.Step();
    stage.engine().Pause(true);
    EXPECT_EQ(stage.engine().PlanStep(), 0);
    EXPECT_THAT(stage.sink.tokens.at(1), SizeIs(5));
    stage.engine().Pause(false);
    stage.RunToTheEnd();

    EXPECT_EQ(stage.sink.tokens.at(1), undisturbed);
  });
}

// Tokens and log-probabilities of some prompts with common beginnings, one
// after the other; and how many prompt tokens each found.
struct Outcome {
  std::map<int64_t, std::vector<int32_t>> tokens;
  std::map<int64_t, std::vector<std::vector<TokenLogprob>>> logprobs;
  std::vector<int64_t> cached;
};

Outcome RunInTurn(bool share_prefixes) {
  JobOptions options = Options();
  options.share_prefixes = share_prefixes;
  Outcome outcome;
  OnStage(options, [&](Stage& stage) {
    std::vector<int32_t> other_end = Text(100);
    other_end[80] = 5;
    const std::vector<std::vector<int32_t>> prompts = {
        Text(100), Text(100), other_end, Text(65), Text(64)};
    for (size_t i = 0; i < prompts.size(); ++i) {
      const auto id = static_cast<int64_t>(i);
      ASSERT_TRUE(stage.engine().Add(Sampled(id, prompts[i], 20)).ok());
      stage.RunToTheEnd();
      outcome.cached.push_back(stage.sink.ends.at(id).cached_prompt_tokens);
    }
    outcome.tokens = stage.sink.tokens;
    outcome.logprobs = stage.sink.logprobs;
  });
  return outcome;
}

TEST(EngineTest, SharedPrefixesGiveTheSameTokensAndProbabilitiesToTheBit) {
  const Outcome alone = RunInTurn(false);
  const Outcome shared = RunInTurn(true);

  EXPECT_THAT(alone.cached, ElementsAre(0, 0, 0, 0, 0));
  EXPECT_THAT(shared.cached, ElementsAre(0, 96, 64, 64, 32));
  EXPECT_EQ(shared.tokens, alone.tokens);
  for (const auto& [id, logprobs] : alone.logprobs) {
    EXPECT_TRUE(SameBits(shared.logprobs.at(id), logprobs)) << id;
  }
}

TEST(EngineTest, LogitsBehindASharedPrefixAreThoseOfAComputedOne) {
  JobOptions options = Options();
  options.logit_rows = 128;
  options.tokens_per_step = 128;
  OnStage(options, [](Stage& stage) {
    const std::vector<int32_t> text = Text(100);
    std::vector<std::vector<float>> computed;
    std::vector<std::vector<float>> shared;
    SequenceRunner first(stage.rank);
    ASSERT_TRUE(first.Append(text, computed).ok());
    first.Publish(text);

    SequenceRunner second(stage.rank);
    ASSERT_EQ(second.Adopt(text), 96);
    ASSERT_TRUE(second.Append(std::span(text).subspan(96), shared).ok());

    ASSERT_THAT(shared, SizeIs(4));
    for (size_t i = 0; i < shared.size(); ++i) {
      EXPECT_EQ(std::memcmp(shared[i].data(), computed[96 + i].data(),
                            shared[i].size() * sizeof(float)),
                0);
    }
  });
}

TEST(EngineTest, PreemptedSequencesComeToTheSameTokens) {
  const auto run = [](int64_t kv_tokens, bool share, int64_t& preemptions) {
    JobOptions options = Options();
    options.kv_tokens = kv_tokens;
    options.share_prefixes = share;
    std::map<int64_t, std::vector<int32_t>> tokens;
    OnStage(options, [&](Stage& stage) {
      for (int64_t id = 0; id < 4; ++id) {
        const auto salt = static_cast<int32_t>(id / 2);  // pairs share
        ASSERT_TRUE(stage.engine().Add(Sampled(id, Text(40, salt), 60)).ok());
      }
      stage.RunToTheEnd();
      tokens = stage.sink.tokens;
      preemptions = stage.engine().counters().preemptions;
      EXPECT_EQ(stage.rank.kv().num_free(), stage.rank.kv().num_pages());
    });
    return tokens;
  };
  int64_t none = 0;
  const auto plenty = run(4096, true, none);
  EXPECT_EQ(none, 0);

  for (const bool share : {false, true}) {
    int64_t some = 0;
    // Pages for one whole sequence, and one more for each of the batch.
    EXPECT_EQ(run(100, share, some), plenty);
    EXPECT_GT(some, 0);
  }
}

TEST(EngineTest, ARequestTakenUpAgainGoesOnWithTheSameTokens) {
  OnStage(Options(), [](Stage& stage) {
    Request whole = Sampled(1, Text(10), 12);
    whole.sampling.repetition_penalty = 1.2;
    whole.sampling.presence_penalty = 0.5;
    ASSERT_TRUE(stage.engine().Add(whole).ok());
    stage.RunToTheEnd();
    const std::vector<int32_t> tokens = stage.sink.tokens.at(1);

    Request resumed = whole;
    resumed.id = 2;
    resumed.generated.assign(tokens.begin(), tokens.begin() + 7);
    ASSERT_TRUE(stage.engine().Add(resumed).ok());
    stage.RunToTheEnd();

    EXPECT_EQ(stage.sink.tokens.at(2),
              std::vector<int32_t>(tokens.begin() + 7, tokens.end()));
  });
}

TEST(EngineTest, TheChosenTokenOfAGreedyRequestIsTheLikeliest) {
  OnStage(Options(), [](Stage& stage) {
    Request request = Sampled(1, Text(10), 5);
    request.sampling.temperature = 0;
    ASSERT_TRUE(stage.engine().Add(request).ok());
    stage.RunToTheEnd();

    ASSERT_THAT(stage.sink.logprobs.at(1), SizeIs(5));
    for (const std::vector<TokenLogprob>& token : stage.sink.logprobs.at(1)) {
      ASSERT_THAT(token, SizeIs(4));
      EXPECT_EQ(token[0].token, token[1].token);
      EXPECT_EQ(token[0].logprob, token[1].logprob);
      EXPECT_LE(token[2].logprob, token[1].logprob);
    }
  });
}

}  // namespace
}  // namespace portolan
