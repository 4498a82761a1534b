#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/transport.h"
#include "runtime/agent/agent_protocol.h"
#include "runtime/agent/request_maker.h"
#include "runtime/base/mutex.h"
#include "runtime/serving/step_loop.h"
#include "runtime/serving/text_request.h"
#include "runtime/serving/text_stream.h"

namespace portolan {

// Stands between a rank's engine and its control stream: requests of the
// coordinator enter the engine at step borders, tokens leave as text, and the
// rank sleeps while nobody has work.
//
// The step loop's side (RequestFeed, TokenSink) is on the step loop's thread
// only; the stream's side is thread-safe.
class RankAgent final : public RequestFeed, public TokenSink {
 public:
  struct Options {
    AgentProtocol::Options protocol;
    ModelTerms model;
    int64_t max_context = 0;
    int64_t kv_tokens = 0;  // a sequence that needs more is refused
    // The tokens of a text; a test may take its time.
    std::function<absl::StatusOr<Request>(const TextRequest&, const ModelTerms&,
                                          int64_t id)>
        make_request = MakeRequest;
    // How long running requests may go on once the rank drains.
    absl::Duration grace = absl::Seconds(30);
    // The coordinator's Drain is the job's: it is part of the job.
    bool drains_with_coordinator = false;
    // SIGTERMs so far; the first begins the drain.
    std::function<int()> terminations = [] { return 0; };
    // The drain begins; once, on the step loop's thread.
    std::function<void()> on_drain = [] {};
    // What the engine does not know itself; every second, on its thread.
    std::function<void(v1::RankMetrics& metrics, float& coldness)> measure =
        [](v1::RankMetrics&, float&) {};
  };

  // `transport` must outlive the agent.
  RankAgent(Options options, Transport& transport);

  // -- Of the step loop --
  // Errors of Poll(): what Fail() was told.
  absl::Status Poll(Engine& engine) override ABSL_LOCKS_EXCLUDED(mu_);
  bool closed() const override ABSL_LOCKS_EXCLUDED(mu_);
  void Close() override ABSL_LOCKS_EXCLUDED(mu_);
  bool has_output() const override ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status WaitForWork() override ABSL_LOCKS_EXCLUDED(mu_);
  bool OnToken(int64_t id, const GeneratedToken& token) override
      ABSL_LOCKS_EXCLUDED(mu_);
  void OnFinish(int64_t id, const SequenceEnd& end) override
      ABSL_LOCKS_EXCLUDED(mu_);

  // -- Of the control stream --
  v1::RankMessage Connect() ABSL_LOCKS_EXCLUDED(mu_);
  void Disconnect() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Receive(const v1::CoordinatorMessage& message)
      ABSL_LOCKS_EXCLUDED(mu_);
  std::optional<v1::RankMessage> NextMessage() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Time next_message_due() const ABSL_LOCKS_EXCLUDED(mu_);
  // Called, on any thread, when NextMessage() may have something.
  void SetNotify(std::function<void()> notify) ABSL_LOCKS_EXCLUDED(mu_);
  // The coordinator refuses this rank for good: the job ends with that.
  void Fail(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);

  // -- At the end --
  // The last message; `status` is how the step loop ended.
  void SayGoodbye(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  bool said_goodbye() const ABSL_LOCKS_EXCLUDED(mu_);
  // Requests were given back unfinished, or their ends are not acknowledged:
  // somebody has to start the job again.
  bool interrupted() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // The output of one sequence of the engine.
  struct Output {
    std::unique_ptr<TextStream> text;  // null without a tokenizer
    int64_t prompt_tokens = 0;
  };

  // Requests whose tokens are being made elsewhere come when they are ready;
  // none overtakes another.
  void Assign(Engine& engine, AgentProtocol::Assignment assignment);
  void AdmitOrEnd(Engine& engine, RequestMaker::Made made);
  void Drop(Engine& engine, int64_t id);
  void JudgeOverdue(Engine& engine, int64_t id) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Admit(Engine& engine, RequestMaker::Made made);
  absl::Status CheckSize(const Request& request) const;
  void End(int64_t id, v1::Finish finish) ABSL_LOCKS_EXCLUDED(mu_);
  void LookAtTerminations() ABSL_LOCKS_EXCLUDED(mu_);
  void FollowDrain(absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);
  void BeginDrain() ABSL_LOCKS_EXCLUDED(mu_);
  void TakeRoom(const Engine& engine) ABSL_LOCKS_EXCLUDED(mu_);
  void TakeMetrics(const Engine& engine) ABSL_LOCKS_EXCLUDED(mu_);
  v1::RankMetrics Measure(const Engine& engine, float& coldness) const;
  bool MayHaveWork(absl::Time now) const ABSL_LOCKS_EXCLUDED(mu_);
  void Notify() ABSL_LOCKS_EXCLUDED(mu_);

  const Options options_;
  Transport& transport_;

  // On the step loop's thread.
  std::map<int64_t, Output> outputs_;
  std::map<int64_t, int64_t> in_the_making_;  // id -> KV tokens at most
  std::optional<absl::Time> drain_until_;
  bool released_ = false;   // the grace is over
  bool abandoned_ = false;  // and nobody took the last words
  absl::Time measure_at_ = absl::InfinitePast();
  const Engine* engine_ = nullptr;  // that Poll() came with
  bool was_paused_ = false;
  bool told_closed_ = false;  // what the ranks were told last
  bool told_pending_ = false;

  mutable Mutex mu_;
  AgentProtocol protocol_ ABSL_GUARDED_BY(mu_);
  bool drain_wanted_ ABSL_GUARDED_BY(mu_) = false;
  bool woken_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  std::function<void()> notify_ ABSL_GUARDED_BY(mu_);

  RequestMaker maker_;
};

}  // namespace portolan
