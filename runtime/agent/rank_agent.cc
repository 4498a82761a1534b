#include "runtime/agent/rank_agent.h"

#include <algorithm>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "runtime/agent/wire.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/steady_now.h"

namespace portolan {
namespace {

// A sleeping rank looks this often for a SIGTERM, which wakes nobody.
constexpr absl::Duration kLook = absl::Milliseconds(100);
// After the grace, for the coordinator to take the ends of requests.
constexpr absl::Duration kLastWords = absl::Seconds(2);
constexpr absl::Duration kMeasureEvery = absl::Seconds(1);
// Texts up to this length become tokens at once, at the step border: in less
// time than a thread would take to wake.
constexpr size_t kShortText = 1024;
// Of a status: the field of the request that is wrong.
constexpr char kFieldPayload[] = "portolan.field";

absl::Status WithField(absl::Status status, absl::string_view field) {
  status.SetPayload(kFieldPayload, absl::Cord(field));
  return status;
}

// What the coordinator cannot tell of a text.
absl::Status CheckPrompt(const v1::Assign& assign, size_t num_tokens) {
  const uint32_t most = assign.max_prompt_tokens();
  if (!assign.has_text() || most == 0 || num_tokens <= most) {
    return absl::OkStatus();
  }
  return WithField(absl::InvalidArgumentError(absl::StrCat(
                       "text has ", num_tokens, " tokens; at most ", most,
                       " are taken (--max-prompt-tokens)")),
                   "text");
}

}  // namespace

RankAgent::RankAgent(Options options, Transport& transport)
    : options_(std::move(options)),
      transport_(transport),
      protocol_(options_.protocol),
      maker_(
          [this](const TextRequest& text, int64_t id) {
            return options_.make_request(text, options_.model, id);
          },
          [this] { transport_.Wake(); }) {}

absl::Status RankAgent::Poll(Engine& engine) {
  engine_ = &engine;
  LookAtTerminations();
  AgentProtocol::EngineWork work;
  {
    MutexLock lock(mu_);
    PORTOLAN_RETURN_IF_ERROR(failure_);
    work = protocol_.TakeEngineWork(SteadyNow());
    was_paused_ = protocol_.paused();
    woken_ = false;
  }
  for (const int64_t id : work.cancel) Drop(engine, id);
  for (const int64_t id : work.overdue) JudgeOverdue(engine, id);
  for (RequestMaker::Made& made : maker_.Take()) {
    // Unless it was dropped meanwhile.
    if (in_the_making_.erase(made.id) > 0) AdmitOrEnd(engine, std::move(made));
  }
  for (AgentProtocol::Assignment& assignment : work.assign) {
    Assign(engine, std::move(assignment));
  }
  engine.Pause(was_paused_);
  TakeRoom(engine);
  told_closed_ = closed();
  told_pending_ = has_output();
  return absl::OkStatus();
}

// Whoever waits for a slot for too long is better told so.
void RankAgent::JudgeOverdue(Engine& engine, int64_t id) {
  const bool started = engine.HasStarted(id);
  {
    MutexLock lock(mu_);
    if (started) {
      protocol_.Started(id);
    } else {
      protocol_.EndUnstarted(id);
    }
  }
  if (!started) Drop(engine, id);
}

void RankAgent::Drop(Engine& engine, int64_t id) {
  if (in_the_making_.erase(id) == 0) engine.Cancel(id);
}

void RankAgent::Assign(Engine& engine, AgentProtocol::Assignment assignment) {
  const v1::Assign& assign = assignment.request;
  const int64_t id = assignment.id;
  if (in_the_making_.empty() && assign.text().size() <= kShortText) {
    return AdmitOrEnd(engine,
                      maker_.MakeNow(id, std::move(assignment.request)));
  }
  // A token stands for a byte at least, but for a few marks around the text.
  in_the_making_[id] = static_cast<int64_t>(assign.text().size()) +
                       static_cast<int64_t>(assign.tokens().ids_size()) +
                       static_cast<int64_t>(assign.params().max_tokens());
  maker_.Push(id, std::move(assignment.request));
}

// A request that cannot be served ends with an error of its own; the rank goes
// on.
void RankAgent::AdmitOrEnd(Engine& engine, RequestMaker::Made made) {
  const int64_t id = made.id;
  absl::Status admitted = Admit(engine, std::move(made));
  if (!admitted.ok()) {
    outputs_.erase(id);
    v1::Finish finish = ErrorFinish(admitted);
    if (const auto field = admitted.GetPayload(kFieldPayload)) {
      finish.mutable_error()->set_field(std::string(*field));
    }
    End(id, std::move(finish));
  }
}

absl::Status RankAgent::Admit(Engine& engine, RequestMaker::Made made) {
  const int64_t id = made.id;
  PORTOLAN_ASSIGN_OR_RETURN(Request request, std::move(made.request));
  PORTOLAN_RETURN_IF_ERROR(CheckPrompt(made.assign, request.prompt.size()));
  if (absl::Status fits = CheckSize(request); !fits.ok()) {
    return WithField(std::move(fits), "params.max_tokens");
  }
  Output& output = outputs_[id];
  output.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  bool stopped = false;
  if (options_.model.tokenizer != nullptr) {
    output.text = std::make_unique<TextStream>(*options_.model.tokenizer,
                                               std::move(made.text.stops));
    // Delivered already: only what they make of the next tokens counts.
    for (const int32_t token : request.generated) output.text->Push(token);
    stopped = output.text->stopped();
  }
  // Everything was generated, but the end of it got lost.
  const std::vector<int32_t>& generated = request.generated;
  stopped |= !generated.empty() && request.Stops(generated.back());
  if (stopped) {
    OnFinish(id, {.reason = FinishReason::kStop});
    return absl::OkStatus();
  }
  if (static_cast<int64_t>(generated.size()) >= request.max_tokens) {
    OnFinish(id, {.reason = FinishReason::kLength});
    return absl::OkStatus();
  }
  return engine.Add(std::move(request));
}

absl::Status RankAgent::CheckSize(const Request& request) const {
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t whole = prompt + request.max_tokens;
  if (whole > options_.max_context) {
    return absl::OutOfRangeError(absl::StrCat(
        "prompt (", prompt, " tokens) + max_tokens (", request.max_tokens,
        ") is beyond the model's context of ", options_.max_context));
  }
  if (whole > options_.kv_tokens) {
    return absl::OutOfRangeError(absl::StrCat(
        "prompt (", prompt, " tokens) + max_tokens (", request.max_tokens,
        ") does not fit the rank's KV cache of ", options_.kv_tokens,
        " tokens (--kv-memory)"));
  }
  return absl::OkStatus();
}

bool RankAgent::OnToken(int64_t id, const GeneratedToken& token) {
  const auto output = outputs_.find(id);
  if (output == outputs_.end()) return true;
  TextStream* const stream = output->second.text.get();
  std::string text = stream == nullptr ? "" : stream->Push(token.token);
  std::optional<v1::TokenLogprobs> logprobs;
  if (!token.logprobs.empty()) logprobs = ToProto(token.logprobs);
  {
    MutexLock lock(mu_);
    protocol_.TakeToken(id, token.token, std::move(text),
                        logprobs ? &*logprobs : nullptr);
  }
  return stream != nullptr && stream->stopped();
}

void RankAgent::OnFinish(int64_t id, const SequenceEnd& end) {
  const auto output = outputs_.find(id);
  if (output == outputs_.end()) return;
  v1::Finish finish = ToProto(end, output->second.prompt_tokens);
  if (output->second.text != nullptr) {
    finish.set_text_tail(output->second.text->Finish());
  }
  outputs_.erase(output);
  End(id, std::move(finish));
}

void RankAgent::End(int64_t id, v1::Finish finish) {
  {
    MutexLock lock(mu_);
    protocol_.TakeEnd(id, std::move(finish));
  }
  Notify();
}

bool RankAgent::closed() const {
  MutexLock lock(mu_);
  return protocol_.draining();
}

void RankAgent::Close() { BeginDrain(); }

bool RankAgent::has_output() const {
  if (abandoned_) return false;
  MutexLock lock(mu_);
  return protocol_.num_requests() > 0;
}

absl::Status RankAgent::WaitForWork() {
  // Of the last steps, for nobody measures while the rank sleeps.
  if (engine_ != nullptr) TakeMetrics(*engine_);
  Notify();  // what the last step gave
  while (true) {
    LookAtTerminations();
    const absl::Time now = SteadyNow();
    if (MayHaveWork(now)) return absl::OkStatus();
    absl::Time until = now + kLook;
    {
      MutexLock lock(mu_);
      until = std::min(until, protocol_.next_deadline());
    }
    PORTOLAN_ASSIGN_OR_RETURN(const bool message,
                              transport_.WaitForMessage(until - now));
    if (message) return absl::OkStatus();
  }
}

bool RankAgent::MayHaveWork(absl::Time now) const {
  MutexLock lock(mu_);
  const bool out = abandoned_ || protocol_.num_requests() == 0;
  return !failure_.ok() || woken_ || maker_.has_made() ||
         protocol_.HasEngineWork(now) || (was_paused_ && !protocol_.paused()) ||
         protocol_.draining() != told_closed_ ||
         (protocol_.draining() && told_pending_ && out);
}

void RankAgent::LookAtTerminations() {
  bool wanted = options_.terminations() > 0;
  {
    MutexLock lock(mu_);
    wanted |= drain_wanted_;
  }
  if (wanted) BeginDrain();
  if (drain_until_) FollowDrain(SteadyNow());
}

void RankAgent::FollowDrain(absl::Time now) {
  abandoned_ |= now >= *drain_until_ + kLastWords;
  if (released_ || now < *drain_until_) return;
  released_ = true;
  {
    MutexLock lock(mu_);
    protocol_.ReleaseAll();
  }
  Notify();
}

void RankAgent::BeginDrain() {
  if (drain_until_) return;
  drain_until_ = SteadyNow() + options_.grace;
  {
    MutexLock lock(mu_);
    protocol_.Drain();
  }
  options_.on_drain();
  Notify();
}

void RankAgent::TakeRoom(const Engine& engine) {
  const Engine::Room room = engine.room();
  const auto capacity = options_.protocol.capacity.max_sequences();
  const auto making = static_cast<uint32_t>(in_the_making_.size());
  const auto taken = static_cast<uint32_t>(engine.num_sequences()) + making;
  int64_t kv_tokens = room.kv_tokens;
  for (const auto& [id, most] : in_the_making_) kv_tokens -= most;
  const AgentProtocol::Room told{
      .sequences = capacity > taken ? capacity - taken : 0,
      .kv_tokens = static_cast<uint64_t>(std::max<int64_t>(0, kv_tokens)),
      .running = static_cast<uint32_t>(engine.num_running()),
      .waiting = static_cast<uint32_t>(engine.num_waiting()) + making};
  if (SteadyNow() >= measure_at_) TakeMetrics(engine);
  {
    MutexLock lock(mu_);
    protocol_.SetRoom(told);
  }
  Notify();
}

void RankAgent::TakeMetrics(const Engine& engine) {
  measure_at_ = SteadyNow() + kMeasureEvery;
  float coldness = 0;
  v1::RankMetrics metrics = Measure(engine, coldness);
  MutexLock lock(mu_);
  protocol_.SetMetrics(std::move(metrics), coldness);
}

v1::RankMetrics RankAgent::Measure(const Engine& engine,
                                   float& coldness) const {
  v1::RankMetrics metrics;
  const Engine::Counters& counters = engine.counters();
  const auto unsigned_of = [](int64_t value) {
    return static_cast<uint64_t>(value);
  };
  metrics.set_prefix_cache_queries(unsigned_of(counters.prefix_queries));
  metrics.set_prefix_cache_hits(unsigned_of(counters.prefix_hits));
  metrics.set_preemptions(unsigned_of(counters.preemptions));
  metrics.set_kv_cache_usage(engine.kv_usage());
  options_.measure(metrics, coldness);
  return metrics;
}

v1::RankMessage RankAgent::Connect() {
  MutexLock lock(mu_);
  return protocol_.Connect(SteadyNow());
}

void RankAgent::Disconnect() {
  MutexLock lock(mu_);
  protocol_.Disconnect();
}

absl::Status RankAgent::Receive(const v1::CoordinatorMessage& message) {
  bool wake = message.has_wake();
  {
    MutexLock lock(mu_);
    const absl::Time now = SteadyNow();
    const bool was_paused = protocol_.paused();
    const bool had_requests = protocol_.num_requests() > 0;
    PORTOLAN_RETURN_IF_ERROR(protocol_.Receive(message, now));
    woken_ |= message.has_wake();
    if (message.has_drain() && options_.drains_with_coordinator) {
      drain_wanted_ = true;
      wake = true;
    }
    wake |= protocol_.HasEngineWork(now);
    wake |= was_paused && !protocol_.paused();
    wake |=
        protocol_.draining() && had_requests && protocol_.num_requests() == 0;
  }
  if (wake) transport_.Wake();
  return absl::OkStatus();
}

std::optional<v1::RankMessage> RankAgent::NextMessage() {
  MutexLock lock(mu_);
  return protocol_.NextMessage(SteadyNow());
}

absl::Time RankAgent::next_message_due() const {
  MutexLock lock(mu_);
  return protocol_.next_message_due();
}

void RankAgent::SetNotify(std::function<void()> notify) {
  MutexLock lock(mu_);
  notify_ = std::move(notify);
}

void RankAgent::Notify() {
  std::function<void()> notify;
  {
    MutexLock lock(mu_);
    notify = notify_;
  }
  if (notify) notify();
}

void RankAgent::Fail(const absl::Status& status) {
  {
    MutexLock lock(mu_);
    if (failure_.ok()) failure_ = status;
  }
  transport_.Wake();
}

void RankAgent::SayGoodbye(const absl::Status& status) {
  {
    MutexLock lock(mu_);
    protocol_.SayGoodbye(status.ok(), std::string(status.message()));
  }
  Notify();
}

bool RankAgent::said_goodbye() const {
  MutexLock lock(mu_);
  return protocol_.said_goodbye();
}

bool RankAgent::interrupted() const {
  MutexLock lock(mu_);
  return protocol_.num_released() > 0 || protocol_.num_requests() > 0;
}

}  // namespace portolan
