#include "runtime/agent/agent_protocol.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

constexpr uint32_t kProtocol = 1;
// Before the coordinator has said it.
constexpr uint32_t kUsualHeldTokens = 65536;
constexpr uint32_t kUsualHeartbeatMs = 1000;
// Keeps a message far below gRPC's limit, also with log-probabilities.
constexpr int kMaxBatchTokens = 2048;

constexpr char kNotStarted[] =
    "no slot of a rank was free within --max-queue-wait";

// 0: never.
absl::Time TimeAfter(absl::Time now, uint64_t milliseconds) {
  if (milliseconds == 0) return absl::InfiniteFuture();
  return now + absl::Milliseconds(static_cast<int64_t>(
                   std::min<uint64_t>(milliseconds, INT64_MAX / 2)));
}

}  // namespace

AgentProtocol::AgentProtocol(const Options& options) : options_(options) {
  terms_.set_max_held_tokens(kUsualHeldTokens);
  terms_.set_heartbeat_ms(kUsualHeartbeatMs);
}

v1::RankMessage AgentProtocol::Connect(absl::Time now) {
  state_ = State::kRegistering;
  received_serial_ = 0;
  counted_serial_ = 0;
  goodbye_sent_ = false;
  beat_at_ = now;
  v1::RankMessage message;
  v1::Register& registration = *message.mutable_register_();
  registration.set_protocol_version(kProtocol);
  registration.set_job(options_.job);
  registration.set_rank(options_.rank);
  registration.set_world_size(options_.world_size);
  registration.set_incarnation(options_.incarnation);
  registration.set_host(options_.host);
  *registration.mutable_model() = options_.model;
  *registration.mutable_capacity() = options_.capacity;
  *registration.mutable_defaults() = options_.defaults;
  for (const auto& [id, entry] : entries_) {
    v1::RunningRequest& running = *registration.add_running();
    running.set_request_id(entry.assign.request_id());
    running.set_attempt(entry.assign.attempt());
    running.set_held_from(entry.held_from);
    running.set_next_offset(entry.next_offset());
  }
  // What the list lacks is queued again by the coordinator.
  to_release_.clear();
  return message;
}

void AgentProtocol::Disconnect() { state_ = State::kDetached; }

absl::Status AgentProtocol::Receive(const v1::CoordinatorMessage& message,
                                    absl::Time now) {
  if ((state_ == State::kRegistering) != message.has_accepted()) {
    return absl::InvalidArgumentError(
        "the coordinator's first message, and only that, must be Accepted");
  }
  switch (message.kind_case()) {
    case v1::CoordinatorMessage::kAccepted:
      return TakeAccepted(message.accepted());
    case v1::CoordinatorMessage::kAssign:
      TakeAssign(message.assign(), now);
      break;
    case v1::CoordinatorMessage::kCancel: {
      const auto entry =
          Find(message.cancel().request_id(), message.cancel().attempt());
      if (entry != entries_.end()) Forget(entry);
      break;
    }
    case v1::CoordinatorMessage::kAck:
      for (const v1::Durable& durable : message.ack().durable()) {
        TakeAck(durable);
      }
      break;
    case v1::CoordinatorMessage::kResend: {
      const auto entry =
          Find(message.resend().request_id(), message.resend().attempt());
      if (entry != entries_.end()) {
        GoOnFrom(entry, message.resend().next_offset());
      }
      break;
    }
    case v1::CoordinatorMessage::kDrain:
    case v1::CoordinatorMessage::kWake:
    case v1::CoordinatorMessage::KIND_NOT_SET:
      break;  // the owner's affair
  }
  return absl::OkStatus();
}

absl::Status AgentProtocol::TakeAccepted(const v1::Accepted& accepted) {
  state_ = State::kAttached;
  terms_ = accepted;
  terms_.clear_resume();
  terms_.set_heartbeat_ms(std::max(50u, terms_.heartbeat_ms()));
  for (const v1::Resume& resume : accepted.resume()) TakeResume(resume);
  return absl::OkStatus();
}

void AgentProtocol::TakeResume(const v1::Resume& resume) {
  const auto entry = Find(resume.request_id(), resume.attempt());
  if (entry == entries_.end()) return;
  if (resume.drop()) return Forget(entry);
  entry->second.finish_sent = false;
  GoOnFrom(entry, resume.next_offset());
}

// Sends from `offset` on, what is before being kept by the coordinator.
void AgentProtocol::GoOnFrom(Entries::iterator at, uint32_t offset) {
  Entry& entry = at->second;
  if (offset < entry.held_from || offset > entry.next_offset()) {
    GiveBack(entry.assign.request_id(), entry.assign.attempt());
    return Forget(at);
  }
  entry.next_to_send = offset;
  entry.finish_sent = false;
  if (entry.has_unsent()) unsent_.insert(at->first);
}

void AgentProtocol::TakeAssign(const v1::Assign& assign, absl::Time now) {
  received_serial_ = assign.serial();
  if (const auto known = ids_.find(assign.request_id()); known != ids_.end()) {
    const auto entry = entries_.find(known->second);
    if (entry->second.assign.attempt() >= assign.attempt()) return;
    Forget(entry);
  }
  if (draining_) return GiveBack(assign.request_id(), assign.attempt());
  const int64_t id = next_id_++;
  Entry entry{.assign = assign};
  entry.deadline = TimeAfter(now, assign.timeout_ms());
  entry.start_by = TimeAfter(now, assign.start_within_ms());
  entry.held_from = static_cast<uint32_t>(assign.prefix_size());
  entry.next_to_send = entry.held_from;
  ids_[assign.request_id()] = id;
  entries_.emplace(id, std::move(entry));
  to_assign_.push_back(id);
}

void AgentProtocol::TakeAck(const v1::Durable& durable) {
  const auto at = Find(durable.request_id(), durable.attempt());
  if (at == entries_.end()) return;
  Entry& entry = at->second;
  if (durable.finished()) return Forget(at);
  while (entry.held_from < durable.next_offset() && !entry.held.empty()) {
    entry.held.pop_front();
    ++entry.held_from;
    --num_held_;
  }
  entry.next_to_send = std::max(entry.next_to_send, entry.held_from);
}

AgentProtocol::Entries::iterator AgentProtocol::Find(
    const std::string& request_id, uint32_t attempt) {
  const auto id = ids_.find(request_id);
  if (id == ids_.end()) return entries_.end();
  const auto entry = entries_.find(id->second);
  return entry->second.assign.attempt() == attempt ? entry : entries_.end();
}

void AgentProtocol::Forget(Entries::iterator entry) {
  StopInEngine(entry);
  num_held_ -= static_cast<int64_t>(entry->second.held.size());
  ids_.erase(entry->second.assign.request_id());
  unsent_.erase(entry->first);
  entries_.erase(entry);
}

void AgentProtocol::StopInEngine(Entries::iterator entry) {
  if (entry->second.with_engine) {
    if (!entry->second.finish) to_cancel_.push_back(entry->first);
  } else {
    std::erase(to_assign_, entry->first);
  }
}

void AgentProtocol::GiveBack(const std::string& request_id, uint32_t attempt) {
  v1::RunningRequest request;
  request.set_request_id(request_id);
  request.set_attempt(attempt);
  to_release_.push_back(std::move(request));
}

AgentProtocol::EngineWork AgentProtocol::TakeEngineWork(absl::Time now) {
  EngineWork work;
  Expire(now, work.overdue);
  work.cancel.swap(to_cancel_);
  for (const int64_t id : to_assign_) {
    Entry& entry = entries_.at(id);
    entry.with_engine = true;
    work.assign.push_back({id, entry.assign});
    // Prompt and prefix may be long, and are the engine's from now on.
    entry.assign.clear_prompt();
    entry.assign.clear_prefix();
  }
  to_assign_.clear();
  counted_serial_ = received_serial_;
  return work;
}

bool AgentProtocol::HasEngineWork(absl::Time now) const {
  return !to_assign_.empty() || !to_cancel_.empty() || next_deadline() <= now;
}

absl::Time AgentProtocol::next_deadline() const {
  absl::Time first = absl::InfiniteFuture();
  for (const auto& [id, entry] : entries_) {
    if (entry.finish) continue;
    first = std::min({first, entry.deadline, entry.start_by});
  }
  return first;
}

void AgentProtocol::Expire(absl::Time now, std::vector<int64_t>& overdue) {
  for (auto at = entries_.begin(); at != entries_.end(); ++at) {
    const Entry& entry = at->second;
    if (entry.finish) continue;
    if (entry.deadline <= now) {
      StopInEngine(at);
      EndWithError(at, absl::StatusCode::kDeadlineExceeded,
                   "the request's time is over");
    } else if (entry.start_by <= now && entry.with_engine) {
      overdue.push_back(at->first);
    } else if (entry.start_by <= now) {
      StopInEngine(at);
      EndWithError(at, absl::StatusCode::kResourceExhausted, kNotStarted);
    }
  }
}

void AgentProtocol::Started(int64_t id) {
  const auto at = entries_.find(id);
  if (at != entries_.end()) at->second.start_by = absl::InfiniteFuture();
}

void AgentProtocol::EndUnstarted(int64_t id) {
  const auto at = entries_.find(id);
  if (at == entries_.end() || at->second.finish) return;
  EndWithError(at, absl::StatusCode::kResourceExhausted, kNotStarted);
}

void AgentProtocol::EndWithError(Entries::iterator at, absl::StatusCode code,
                                 const char* message) {
  v1::Finish finish;
  finish.set_reason(v1::FINISH_REASON_ERROR);
  finish.mutable_error()->set_code(static_cast<uint32_t>(code));
  finish.mutable_error()->set_message(message);
  finish.mutable_usage()->set_completion_tokens(at->second.next_offset());
  at->second.finish = std::move(finish);
  unsent_.insert(at->first);
}

void AgentProtocol::TakeToken(int64_t id, int32_t token, std::string text,
                              v1::TokenLogprobs* logprobs) {
  const auto at = entries_.find(id);
  if (at == entries_.end() || at->second.finish) return;
  HeldToken& held = at->second.held.emplace_back();
  held.token = token;
  held.text = std::move(text);
  if (logprobs != nullptr) held.logprobs = std::move(*logprobs);
  ++num_held_;
  unsent_.insert(id);
}

void AgentProtocol::TakeEnd(int64_t id, v1::Finish finish) {
  const auto at = entries_.find(id);
  if (at == entries_.end() || at->second.finish) return;
  finish.mutable_usage()->set_completion_tokens(at->second.next_offset());
  at->second.finish = std::move(finish);
  unsent_.insert(id);
}

// A step may give every sequence one token more. With nothing held a step is
// always due, or a limit below the number of sequences would end all work.
bool AgentProtocol::paused() const {
  const int64_t of_next_step =
      std::count_if(entries_.begin(), entries_.end(), [](const auto& entry) {
        return entry.second.with_engine && !entry.second.finish;
      });
  return num_held_ > 0 && num_held_ + of_next_step > terms_.max_held_tokens();
}

void AgentProtocol::SetRoom(const Room& room) { room_ = room; }

void AgentProtocol::SetMetrics(v1::RankMetrics metrics, float coldness) {
  metrics_ = std::move(metrics);
  coldness_ = coldness;
}

void AgentProtocol::Drain() {
  if (draining_) return;
  draining_ = true;
  beat_at_ = absl::InfinitePast();
}

void AgentProtocol::ReleaseAll() {
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const auto at = entry++;
    // An end that is only not acknowledged yet must not be computed again; the
    // coordinator may have it.
    if (at->second.finish) continue;
    GiveBack(at->second.assign.request_id(), at->second.assign.attempt());
    ++num_released_;
    Forget(at);
  }
}

void AgentProtocol::SayGoodbye(bool clean, const std::string& reason) {
  goodbye_.emplace();
  goodbye_->set_clean(clean);
  goodbye_->set_reason(reason);
}

absl::Time AgentProtocol::next_message_due() const {
  return state_ == State::kAttached ? beat_at_ : absl::InfiniteFuture();
}

std::optional<v1::RankMessage> AgentProtocol::NextMessage(absl::Time now) {
  if (state_ != State::kAttached || goodbye_sent_) return std::nullopt;
  if (!unsent_.empty()) return MakeTokenBatch();
  if (!to_release_.empty()) {
    v1::RankMessage message;
    for (v1::RunningRequest& request : to_release_) {
      *message.mutable_release()->add_requests() = std::move(request);
    }
    to_release_.clear();
    return message;
  }
  if (goodbye_) {
    goodbye_sent_ = true;
    v1::RankMessage message;
    *message.mutable_goodbye() = *goodbye_;
    return message;
  }
  const bool grew =
      room_.sequences > told_room_.sequences ||
      (room_.sequences > 0 && room_.kv_tokens > told_room_.kv_tokens);
  if (grew || now >= beat_at_) return MakeHeartbeat(now);
  return std::nullopt;
}

v1::RankMessage AgentProtocol::MakeHeartbeat(absl::Time now) {
  beat_at_ = now + absl::Milliseconds(terms_.heartbeat_ms()) / 2;
  told_room_ = room_;
  v1::RankMessage message;
  v1::Heartbeat& beat = *message.mutable_heartbeat();
  beat.set_running(room_.running);
  beat.set_waiting(room_.waiting + static_cast<uint32_t>(to_assign_.size()));
  beat.set_free_sequences(room_.sequences);
  beat.set_free_kv_tokens(room_.kv_tokens);
  beat.set_draining(draining_);
  beat.set_last_assign_serial(counted_serial_);
  beat.set_coldness(coldness_);
  *beat.mutable_metrics() = metrics_;
  return message;
}

v1::RankMessage AgentProtocol::MakeTokenBatch() {
  v1::RankMessage message;
  int room = kMaxBatchTokens;
  while (!unsent_.empty() && room > 0) {
    const int64_t id = *unsent_.begin();
    Entry& entry = entries_.at(id);
    AppendDelta(entry, room, *message.mutable_tokens());
    if (!entry.has_unsent()) unsent_.erase(id);
  }
  return message;
}

void AgentProtocol::AppendDelta(Entry& entry, int& room,
                                v1::TokenBatch& batch) {
  v1::TokenDelta& delta = *batch.add_deltas();
  delta.set_request_id(entry.assign.request_id());
  delta.set_attempt(entry.assign.attempt());
  delta.set_offset(entry.next_to_send);
  for (; entry.next_to_send < entry.next_offset() && room > 0; --room) {
    const HeldToken& held = entry.held[entry.next_to_send - entry.held_from];
    delta.add_token_ids(held.token);
    delta.add_texts(held.text);
    if (held.logprobs) *delta.add_logprobs() = *held.logprobs;
    ++entry.next_to_send;
  }
  if (entry.finish && entry.next_to_send == entry.next_offset()) {
    *delta.mutable_finish() = *entry.finish;
    entry.finish_sent = true;
    --room;
  }
}

}  // namespace portolan
