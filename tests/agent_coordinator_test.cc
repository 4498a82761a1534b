// A rank with the bundled model at a coordinator, over real gRPC. The test
// drives the steps, so it can count them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "launcher/requests.h"
#include "launcher/wiring.h"
#include "runtime/agent/control_stream.h"
#include "runtime/agent/rank_agent.h"
#include "tests/coordinator_server_fixture.h"
#include "tests/model_fixture.h"

namespace portolan {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

// The step loop, one step at a time.
class Stepper {
 public:
  Stepper(RankRuntime& rank, RankAgent& agent) : rank_(rank), agent_(agent) {}

  // Sleeps as an idle rank does, until the coordinator has something for it.
  void WaitForWork() { ASSERT_TRUE(agent_.WaitForWork().ok()); }
  void Step() {
    ASSERT_TRUE(agent_.Poll(engine()).ok());
    StepRecord record;
    record.rows_planned = engine().PlanStep();
    record.has_work = record.rows_planned > 0;
    ASSERT_TRUE(rank_.exchange().BeginStep(record).ok());
    if (record.has_work) {
      ASSERT_TRUE(engine().RunStep(record.rows_planned).ok());
    }
  }
  Engine& engine() { return rank_.engine(); }

 private:
  RankRuntime& rank_;
  RankAgent& agent_;
};

class AgentCoordinatorTest : public CoordinatorTest {
 protected:
  // One sequence at a time, so that the next one needs the slot of the first.
  void WithRank(const std::function<void(Stepper&)>& body) {
    Start();
    JobOptions options = BundledModel();
    options.batch = 1;
    const absl::Status status =
        RunJob(options, [&](const Model& model, RunWorld run_world) {
          return run_world([&](Transport& transport) -> absl::Status {
            Relay relay;
            auto rank = RankRuntime::Create(options, model, transport, relay);
            if (!rank.ok()) return rank.status();
            RankAgent agent(AgentOptions(model), transport);
            relay.sink = &agent;
            CoordinatorAddress address;
            address.address = coordinator_->address();
            ControlStream stream(address, agent, 1, [](const std::string&) {});
            Stepper stepper(**rank, agent);
            // As a rank's loop begins: what it has room for is known from then
            // on.
            stepper.Step();
            body(stepper);
            return absl::OkStatus();
          });
        });
    EXPECT_TRUE(status.ok()) << status;
  }

  static RankAgent::Options AgentOptions(const Model& model) {
    RankAgent::Options options;
    AgentProtocol::Options& protocol = options.protocol;
    protocol.job = "job";
    protocol.incarnation = 1;
    protocol.model.set_name("tiny-moe");
    protocol.model.set_fingerprint("f00d");
    protocol.model.set_numerics_id("n1");
    protocol.capacity.set_max_sequences(2);
    options.model = TermsOf(model);
    options.max_context = model.config.max_position;
    options.kv_tokens = model.config.max_position;
    return options;
  }

  static v1::GenerateRequest LongRequest() {
    v1::GenerateRequest request = Request();
    request.mutable_params()->set_max_tokens(400);
    request.mutable_params()->set_ignore_eos(true);
    return request;
  }
};

TEST_F(AgentCoordinatorTest, AClientThatGoesFreesItsSlotInTheNextStep) {
  WithRank([&](Stepper& rank) {
    const int64_t room = rank.engine().room().kv_tokens;
    auto gone = std::make_unique<Stream>(*this, LongRequest());
    rank.WaitForWork();
    for (int i = 0; i < 5; ++i) rank.Step();
    gone->ReadUntil(3);
    ASSERT_EQ(rank.engine().num_running(), 1);
    ASSERT_LT(rank.engine().room().kv_tokens, room);
    const int64_t tokens = rank.engine().counters().generated_tokens;

    gone.reset();
    // No step is needed for the word to come.
    rank.WaitForWork();
    rank.Step();

    EXPECT_EQ(rank.engine().num_sequences(), 0);
    EXPECT_EQ(rank.engine().room().kv_tokens, room);
    EXPECT_EQ(rank.engine().counters().generated_tokens, tokens);
  });
}

TEST_F(AgentCoordinatorTest, TheStepThatFreesASlotFillsItAgain) {
  WithRank([&](Stepper& rank) {
    auto gone = std::make_unique<Stream>(*this, LongRequest());
    rank.WaitForWork();
    rank.Step();
    Stream next(*this, LongRequest());
    rank.WaitForWork();
    rank.Step();
    ASSERT_EQ(rank.engine().num_running(), 1);
    ASSERT_EQ(rank.engine().num_waiting(), 1);
    ASSERT_THAT(next.tokens, IsEmpty());

    gone.reset();
    rank.WaitForWork();
    rank.Step();

    EXPECT_EQ(rank.engine().num_sequences(), 1);
    next.ReadUntil(1);
    EXPECT_THAT(next.tokens, SizeIs(1));
  });
}

TEST_F(AgentCoordinatorTest, ADeadlineFreesTheSlotInTheNextStep) {
  WithRank([&](Stepper& rank) {
    Stream late(*this, LongRequest(), absl::Milliseconds(500));
    rank.WaitForWork();
    rank.Step();
    ASSERT_EQ(rank.engine().num_running(), 1);

    late.ReadAll();
    rank.WaitForWork();
    rank.Step();

    EXPECT_EQ(late.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    EXPECT_EQ(rank.engine().num_sequences(), 0);
  });
}

TEST_F(AgentCoordinatorTest, AWaitForASlotCountsAsAWaitInTheQueue) {
  options_.hub.queue.max_queue_wait = absl::Milliseconds(500);
  WithRank([&](Stepper& rank) {
    Stream first(*this, LongRequest());
    rank.WaitForWork();
    rank.Step();
    Stream second(*this, LongRequest());
    rank.WaitForWork();
    rank.Step();
    ASSERT_EQ(rank.engine().num_waiting(), 1);
    ASSERT_EQ(rank.engine().num_running(), 1);

    // The rank is busy for longer than the second one may wait.
    while (rank.engine().num_waiting() > 0) {
      rank.WaitForWork();
      rank.Step();
    }

    EXPECT_EQ(rank.engine().num_running(), 1);
    second.ReadAll();
    EXPECT_EQ(second.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(second.status.error_message(),
                testing::HasSubstr("--max-queue-wait"));
    EXPECT_THAT(second.status.error_details(), testing::HasSubstr("RetryInfo"));
  });
}

}  // namespace
}  // namespace portolan
