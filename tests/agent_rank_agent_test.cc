// A rank's agent over the bundled model: assignments in, texts out.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "launcher/requests.h"
#include "launcher/wiring.h"
#include "runtime/agent/rank_agent.h"
#include "runtime/agent/wire.h"
#include "tests/model_fixture.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// What came of one request.
struct Answer {
  std::vector<int32_t> tokens;
  std::vector<std::string> texts;
  std::vector<v1::TokenLogprobs> logprobs;
  v1::Finish finish;

  std::string text() const {
    std::string all;
    for (const std::string& text : texts) all += text;
    return all + finish.text_tail();
  }
};

// One rank; the test is its coordinator, which acknowledges everything.
class Rank1 {
 public:
  Rank1(RankRuntime& rank, RankAgent& agent) : rank_(rank), agent_(agent) {
    agent_.Connect();
    v1::CoordinatorMessage message;
    message.mutable_accepted()->set_heartbeat_ms(1000);
    message.mutable_accepted()->set_max_held_tokens(1000);
    EXPECT_TRUE(agent_.Receive(message).ok());
  }

  void Assign(const v1::Assign& assign) {
    v1::CoordinatorMessage message;
    *message.mutable_assign() = assign;
    message.mutable_assign()->set_serial(++serial_);
    EXPECT_TRUE(agent_.Receive(message).ok());
  }

  void Step() {
    ASSERT_TRUE(agent_.Poll(rank_.engine()).ok());
    StepRecord record;
    record.rows_planned = rank_.engine().PlanStep();
    record.has_work = record.rows_planned > 0;
    ASSERT_TRUE(rank_.exchange().BeginStep(record).ok());
    if (record.has_work) {
      ASSERT_TRUE(rank_.engine().RunStep(record.rows_planned).ok());
    }
    Collect();
  }

  void Cancel(const std::string& id) {
    v1::CoordinatorMessage message;
    message.mutable_cancel()->set_request_id(id);
    message.mutable_cancel()->set_attempt(1);
    EXPECT_TRUE(agent_.Receive(message).ok());
  }
  const Answer& answer(const std::string& id) { return answers_[id]; }
  void StepToTheEndOf(const std::string& id) {
    const absl::Time patience = absl::Now() + absl::Seconds(60);
    while (!answers_[id].finish.has_usage() && absl::Now() < patience) Step();
  }

  Answer Run(const v1::Assign& assign) {
    Assign(assign);
    for (int step = 0; !answers_[assign.request_id()].finish.has_usage();
         ++step) {
      if (step == 1000) {
        ADD_FAILURE() << "no end";
        break;
      }
      Step();
    }
    return answers_[assign.request_id()];
  }

 private:
  void Collect() {
    while (auto message = agent_.NextMessage()) {
      v1::CoordinatorMessage answer;
      for (const v1::TokenDelta& delta : message->tokens().deltas()) {
        Take(delta, *answer.mutable_ack()->add_durable());
      }
      if (answer.has_ack()) {
        ASSERT_TRUE(agent_.Receive(answer).ok());
      }
    }
  }

  void Take(const v1::TokenDelta& delta, v1::Durable& durable) {
    Answer& answer = answers_[delta.request_id()];
    answer.tokens.insert(answer.tokens.end(), delta.token_ids().begin(),
                         delta.token_ids().end());
    answer.texts.insert(answer.texts.end(), delta.texts().begin(),
                        delta.texts().end());
    answer.logprobs.insert(answer.logprobs.end(), delta.logprobs().begin(),
                           delta.logprobs().end());
    if (delta.has_finish()) answer.finish = delta.finish();
    durable.set_request_id(delta.request_id());
    durable.set_attempt(delta.attempt());
    durable.set_next_offset(delta.offset() +
                            static_cast<uint32_t>(delta.token_ids_size()));
    durable.set_finished(delta.has_finish());
  }

  RankRuntime& rank_;
  RankAgent& agent_;
  uint64_t serial_ = 0;
  std::map<std::string, Answer> answers_;
};

void WithRank(
    std::function<void(Rank1&, const Model&)> body,
    decltype(RankAgent::Options::make_request) make_request = MakeRequest) {
  JobOptions options = BundledModel();
  options.batch = 4;
  const absl::Status status =
      RunJob(options, [&](const Model& model, RunWorld run_world) {
        return run_world([&](Transport& transport) -> absl::Status {
          Relay relay;
          auto rank = RankRuntime::Create(options, model, transport, relay);
          if (!rank.ok()) return rank.status();
          RankAgent::Options agent_options;
          agent_options.protocol.capacity.set_max_sequences(5);
          agent_options.model = TermsOf(model);
          agent_options.max_context = model.config.max_position;
          agent_options.kv_tokens = 100;
          agent_options.make_request = make_request;
          RankAgent agent(agent_options, transport);
          relay.sink = &agent;
          Rank1 stage(**rank, agent);
          body(stage, model);
          return absl::OkStatus();
        });
      });
  EXPECT_TRUE(status.ok()) << status;
}

v1::Assign Request(const std::string& id, const std::string& prompt,
                   uint32_t max_tokens) {
  v1::Assign assign;
  assign.set_request_id(id);
  assign.set_attempt(1);
  assign.set_text(prompt);
  assign.mutable_params()->set_max_tokens(max_tokens);
  assign.mutable_params()->set_temperature(1);
  assign.mutable_params()->set_seed(5);
  assign.mutable_params()->set_ignore_eos(true);
  return assign;
}

v1::Assign Resumed(v1::Assign assign, const std::string& id,
                   const Answer& answer, size_t num_tokens) {
  assign.set_request_id(id);
  assign.set_attempt(2);
  assign.mutable_prefix()->Add(
      answer.tokens.begin(),
      answer.tokens.begin() + static_cast<ptrdiff_t>(num_tokens));
  return assign;
}

TEST(RankAgentTest, ARequestTakenUpAnywhereGoesOnWithTheVeryText) {
  WithRank([](Rank1& rank, const Model&) {
    // High temperature: bytes of broken-up characters among the tokens.
    v1::Assign assign = Request("whole", "The harbour", 24);
    assign.mutable_params()->set_temperature(3);
    const Answer whole = rank.Run(assign);
    ASSERT_THAT(whole.tokens, SizeIs(24));

    for (size_t at = 0; at <= whole.tokens.size(); ++at) {
      SCOPED_TRACE(at);
      const Answer rest =
          rank.Run(Resumed(assign, "from " + std::to_string(at), whole, at));

      EXPECT_EQ(rest.tokens,
                std::vector<int32_t>(
                    whole.tokens.begin() + static_cast<ptrdiff_t>(at),
                    whole.tokens.end()));
      EXPECT_EQ(rest.texts,
                std::vector<std::string>(
                    whole.texts.begin() + static_cast<ptrdiff_t>(at),
                    whole.texts.end()));
      EXPECT_EQ(rest.finish.text_tail(), whole.finish.text_tail());
      EXPECT_EQ(rest.finish.reason(), whole.finish.reason());
      EXPECT_EQ(rest.finish.usage().completion_tokens(), 24u);
    }
  });
}

TEST(RankAgentTest, AStopTextIsFoundAcrossTheSeamOfTwoAttempts) {
  WithRank([](Rank1& rank, const Model&) {
    const Answer plain = rank.Run(Request("plain", "Once upon a time", 20));
    // From inside one token's text into the next one's.
    const std::string all = plain.text();
    ASSERT_GT(all.size(), 30u);
    const std::string stop = all.substr(all.size() / 2, 12);
    v1::Assign assign = Request("stopped", "Once upon a time", 20);
    assign.mutable_params()->add_stop(stop);
    const Answer stopped = rank.Run(assign);
    ASSERT_EQ(stopped.finish.reason(), v1::FINISH_REASON_STOP);
    EXPECT_EQ(stopped.text(), all.substr(0, all.find(stop)));

    for (size_t at = 0; at <= stopped.tokens.size(); ++at) {
      SCOPED_TRACE(at);
      const Answer rest =
          rank.Run(Resumed(assign, "from " + std::to_string(at), stopped, at));

      EXPECT_EQ(rest.tokens.size(), stopped.tokens.size() - at);
      EXPECT_EQ(rest.finish.reason(), v1::FINISH_REASON_STOP);
      std::string text;
      for (size_t i = 0; i < at; ++i) text += stopped.texts[i];
      EXPECT_EQ(text + rest.text(), stopped.text());
    }
  });
}

TEST(RankAgentTest, HeldBackTextThatBecameNoStopTextComesWithTheEnd) {
  WithRank([](Rank1& rank, const Model&) {
    const Answer plain = rank.Run(Request("plain", "Once upon a time", 8));
    v1::Assign assign = Request("held", "Once upon a time", 8);
    assign.mutable_params()->add_stop(
        plain.text().substr(plain.text().size() - 2) + " never");

    const Answer held = rank.Run(assign);

    EXPECT_THAT(held.finish.text_tail(), testing::Not(IsEmpty()));
    EXPECT_EQ(held.text(), plain.text());
    EXPECT_EQ(held.finish.reason(), v1::FINISH_REASON_LENGTH);
  });
}

TEST(RankAgentTest, ATextOfTooManyTokensIsRefusedByItsField) {
  WithRank([](Rank1& rank, const Model&) {
    v1::Assign assign = Request("plain", "Once upon a time", 2);
    const Answer plain = rank.Run(assign);
    const uint32_t length = plain.finish.usage().prompt_tokens();
    ASSERT_GT(length, 1u);
    assign.set_request_id("short enough");
    assign.set_max_prompt_tokens(length);
    EXPECT_EQ(rank.Run(assign).tokens, plain.tokens);

    assign.set_request_id("too long");
    assign.set_max_prompt_tokens(length - 1);
    const Answer refused = rank.Run(assign);

    EXPECT_EQ(refused.finish.reason(), v1::FINISH_REASON_ERROR);
    EXPECT_EQ(refused.finish.error().code(), 3u);  // INVALID_ARGUMENT
    EXPECT_EQ(refused.finish.error().field(), "text");
    EXPECT_THAT(refused.finish.error().message(),
                HasSubstr("--max-prompt-tokens"));
    EXPECT_THAT(refused.tokens, IsEmpty());
    assign.set_request_id("after it");
    assign.set_max_prompt_tokens(0);
    EXPECT_EQ(rank.Run(assign).tokens, plain.tokens);
  });
}

TEST(RankAgentTest, LogprobsComeWithEveryTokenAndOnlyIfAskedFor) {
  WithRank([](Rank1& rank, const Model&) {
    v1::Assign assign = Request("with", "The harbour", 4);
    assign.mutable_params()->set_logprobs(2);

    const Answer with = rank.Run(assign);
    const Answer without = rank.Run(Request("without", "The harbour", 4));

    EXPECT_EQ(with.tokens, without.tokens);
    EXPECT_THAT(without.logprobs, IsEmpty());
    ASSERT_THAT(with.logprobs, SizeIs(4));
    for (size_t i = 0; i < with.logprobs.size(); ++i) {
      EXPECT_EQ(with.logprobs[i].chosen().token_id(), with.tokens[i]);
      EXPECT_THAT(with.logprobs[i].top(), SizeIs(2));
    }
  });
}

TEST(RankAgentTest, AStopTokenEndsTheRequest) {
  WithRank([](Rank1& rank, const Model&) {
    const Answer plain = rank.Run(Request("plain", "The harbour", 10));
    v1::Assign assign = Request("stopped", "The harbour", 10);
    assign.mutable_params()->add_stop_token_ids(plain.tokens[4]);

    const Answer stopped = rank.Run(assign);

    EXPECT_EQ(stopped.finish.reason(), v1::FINISH_REASON_STOP);
    EXPECT_EQ(stopped.tokens.back(), plain.tokens[4]);
    EXPECT_LE(stopped.tokens.size(), 5u);
  });
}

TEST(RankAgentTest, ARequestThatCannotBeServedEndsAloneWithItsCode) {
  WithRank([](Rank1& rank, const Model& model) {
    v1::Assign no_token = Request("no token", "", 4);
    no_token.mutable_tokens()->add_ids(1 << 30);
    v1::Assign long_one =
        Request("long", "x", static_cast<uint32_t>(model.config.max_position));
    const v1::Assign big = Request("big", "x", 100);

    EXPECT_EQ(rank.Run(no_token).finish.error().code(), 3u);
    EXPECT_EQ(rank.Run(long_one).finish.error().code(), 11u);
    EXPECT_EQ(rank.Run(big).finish.error().code(), 11u);
    EXPECT_THAT(rank.Run(no_token).finish.error().message(),
                HasSubstr("vocabulary"));
    EXPECT_THAT(rank.Run(Request("good", "x", 3)).tokens, SizeIs(3));
  });
}

TEST(RankAgentTest, UsageTellsWhatWasShared) {
  WithRank([](Rank1& rank, const Model&) {
    std::string prompt;
    for (int i = 0; i < 30; ++i) prompt += "one two three ";
    const Answer first = rank.Run(Request("first", prompt.substr(0, 160), 3));
    const Answer second = rank.Run(Request("second", prompt.substr(0, 160), 3));

    EXPECT_EQ(first.finish.usage().cached_prompt_tokens(), 0u);
    EXPECT_GT(second.finish.usage().cached_prompt_tokens(), 0u);
    EXPECT_EQ(first.finish.usage().prompt_tokens(),
              second.finish.usage().prompt_tokens());
    EXPECT_EQ(first.tokens, second.tokens);
  });
}

// A tokenizer that takes as long as the test wants over a long text.
class SlowTokenizer {
 public:
  static constexpr char kStandsFor[] = "The harbour";

  absl::StatusOr<portolan::Request> operator()(const TextRequest& request,
                                               const ModelTerms& model,
                                               int64_t id) {
    texts_.push_back(request.text.substr(0, 3));
    if (request.text.size() < 10'000) return MakeRequest(request, model, id);
    started_.Notify();
    go_on_.WaitForNotification();
    TextRequest instead = request;
    instead.text = kStandsFor;
    return MakeRequest(instead, model, id);
  }
  void WaitUntilAtWork() { started_.WaitForNotification(); }
  void GoOn() { go_on_.Notify(); }
  // How those that it saw begin; after GoOn().
  const std::vector<std::string>& texts() const { return texts_; }

 private:
  std::vector<std::string> texts_;
  absl::Notification started_;
  absl::Notification go_on_;
};

TEST(RankAgentTest, TokensGoOnWhileALongPromptIsTokenised) {
  SlowTokenizer tokenizer;
  WithRank(
      [&](Rank1& rank, const Model&) {
        const Answer alone = rank.Run(Request("alone", "Once upon", 24));
        const Answer stands_for =
            rank.Run(Request("short", SlowTokenizer::kStandsFor, 6));
        rank.Assign(Request("running", "Once upon", 24));
        while (rank.answer("running").tokens.empty()) rank.Step();
        rank.Assign(Request("long", std::string(100'000, 'x'), 6));
        rank.Assign(Request("behind", SlowTokenizer::kStandsFor, 6));
        rank.Step();
        tokenizer.WaitUntilAtWork();

        const size_t before = rank.answer("running").tokens.size();
        for (int step = 0; step < 10; ++step) rank.Step();

        EXPECT_EQ(rank.answer("running").tokens.size(), before + 10)
            << "a token in every step";
        EXPECT_THAT(rank.answer("long").tokens, IsEmpty());
        EXPECT_THAT(rank.answer("behind").tokens, IsEmpty()) << "it came later";

        tokenizer.GoOn();
        for (const char* id : {"running", "long", "behind"}) {
          rank.StepToTheEndOf(id);
        }
        EXPECT_EQ(rank.answer("running").tokens, alone.tokens);
        EXPECT_EQ(rank.answer("long").tokens, stands_for.tokens);
        EXPECT_EQ(rank.answer("behind").tokens, stands_for.tokens);
        EXPECT_THAT(tokenizer.texts(),
                    ElementsAre("Onc", "The", "Onc", "xxx", "The"));
      },
      std::ref(tokenizer));
}

TEST(RankAgentTest, ARequestCancelledWhileItIsTokenisedNeverRuns) {
  SlowTokenizer tokenizer;
  WithRank(
      [&](Rank1& rank, const Model&) {
        rank.Assign(Request("long", std::string(100'000, 'x'), 6));
        rank.Step();
        tokenizer.WaitUntilAtWork();
        rank.Cancel("long");
        rank.Step();
        rank.Assign(Request("next", SlowTokenizer::kStandsFor, 6));

        tokenizer.GoOn();
        rank.StepToTheEndOf("next");

        EXPECT_THAT(rank.answer("next").tokens, SizeIs(6));
        EXPECT_THAT(rank.answer("long").tokens, IsEmpty());
      },
      std::ref(tokenizer));
}

TEST(WireTest, DefaultsOfTheCommandLineTravelWhole) {
  TextRequest defaults;
  defaults.max_tokens = 7;
  defaults.sampling.temperature = 0.5;
  defaults.stops = {"end"};
  defaults.stop_token_ids = {3, 4};
  defaults.num_logprobs = 2;

  const v1::SamplingParams params = ToProto(defaults);

  EXPECT_EQ(params.max_tokens(), 7u);
  EXPECT_EQ(params.temperature(), 0.5);
  EXPECT_EQ(params.stop(0), "end");
  EXPECT_EQ(params.stop_token_ids_size(), 2);
  EXPECT_EQ(params.logprobs(), 2u);
  // Drawn for each request.
  EXPECT_FALSE(params.has_seed());
}

}  // namespace
}  // namespace portolan
