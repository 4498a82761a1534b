#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/coordinator/hub.h"
#include "cluster/coordinator/params.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

int64_t Signed(uint64_t value) {
  return static_cast<int64_t>(std::min<uint64_t>(value, INT64_MAX));
}

RequestState StateOf(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
    case v1::FINISH_REASON_LENGTH:
      return RequestState::kDone;
    case v1::FINISH_REASON_CANCELLED:
      return RequestState::kCancelled;
    default:
      return RequestState::kFailed;
  }
}

// As the fields of Assign have it: 0 is never, so what is over is 1.
uint64_t MillisecondsUntil(absl::Time time, absl::Time now) {
  if (time == absl::InfiniteFuture()) return 0;
  return static_cast<uint64_t>(
      std::max<int64_t>(1, absl::ToInt64Milliseconds(time - now)));
}

// What of `delta` follows its first `skip` tokens, as it is stored.
v1::TokenDelta After(const v1::TokenDelta& delta, int skip) {
  v1::TokenDelta rest;
  rest.set_attempt(delta.attempt());
  rest.set_offset(delta.offset() + static_cast<uint32_t>(skip));
  for (int i = skip; i < delta.token_ids_size(); ++i) {
    rest.add_token_ids(delta.token_ids(i));
    rest.add_texts(delta.texts(i));
    if (delta.logprobs_size() > 0) *rest.add_logprobs() = delta.logprobs(i);
  }
  return rest;
}

}  // namespace

RequestHub::Session* RequestHub::FindSession(const RankStream* stream) {
  const auto session = sessions_.find(stream);
  return session == sessions_.end() ? nullptr : &session->second;
}

RequestHub::Session* RequestHub::FindSession(uint64_t id) {
  const auto session = sessions_by_id_.find(id);
  return session == sessions_by_id_.end() ? nullptr : session->second;
}

void RequestHub::RankCame(std::shared_ptr<RankStream> stream) {
  Post([this, stream = std::move(stream)]() mutable {
    Session& session = sessions_[stream.get()];
    session.id = next_session_++;
    session.stream = std::move(stream);
    sessions_by_id_[session.id] = &session;
    if (stopping_) EndSession(session, Stopping());
  });
}

void RequestHub::RankSent(const RankStream* stream, v1::RankMessage message) {
  Post([this, stream, message = std::move(message)] {
    Session* session = FindSession(stream);
    if (session == nullptr || session->end) return;
    Handle(*session, message);
    session = FindSession(stream);
    if (session != nullptr && !session->end) session->stream->ReadNext();
  });
}

void RequestHub::Handle(Session& session, const v1::RankMessage& message) {
  absl::Status unknown = CheckUnknownFields(message);
  if (!unknown.ok()) return EndSession(session, std::move(unknown));
  const bool is_register = message.kind_case() == v1::RankMessage::kRegister;
  if (is_register == session.registered) {
    return EndSession(session,
                      absl::InvalidArgumentError(
                          "Register must be the first message, and only that"));
  }
  const absl::Time now = clock_.Now();
  switch (message.kind_case()) {
    case v1::RankMessage::kRegister:
      return Register(session, message.register_());
    case v1::RankMessage::kHeartbeat: {
      const v1::Heartbeat& beat = message.heartbeat();
      if (beat.has_metrics()) {
        session.metrics = beat.metrics();
        telemetry_.RankCounted(session.identity, beat.metrics());
      }
      return queue_.Heartbeat(session.id,
                              {.free_sequences = beat.free_sequences(),
                               .free_kv_tokens = Signed(beat.free_kv_tokens()),
                               .last_assign_serial = beat.last_assign_serial(),
                               .draining = beat.draining(),
                               .coldness = beat.coldness()},
                              now);
    }
    case v1::RankMessage::kTokens:
      queue_.Heard(session.id, now);
      return TakeTokens(session, message.tokens());
    case v1::RankMessage::kRelease:
      queue_.Heard(session.id, now);
      for (const v1::RunningRequest& request : message.release().requests()) {
        queue_.Release(session.id, LiveSeq(request.request_id()),
                       static_cast<int>(request.attempt()), actions_);
      }
      return;
    case v1::RankMessage::kGoodbye:
      queue_.Goodbye(session.id, message.goodbye().clean(), actions_);
      return EndSession(session, absl::OkStatus());
    case v1::RankMessage::KIND_NOT_SET:
      return EndSession(session,
                        absl::InvalidArgumentError("an empty RankMessage"));
  }
}

void RequestHub::Register(Session& session, const v1::Register& message) {
  if (absl::Status valid = ValidateRegister(message); !valid.ok()) {
    return EndSession(session, std::move(valid));
  }
  RankRegistration registration{
      .job = message.job(),
      .rank = static_cast<int>(message.rank()),
      .world_size = static_cast<int>(message.world_size()),
      .incarnation = message.incarnation(),
      .host = message.host(),
      .model_name = message.model().name(),
      .fingerprint = message.model().fingerprint(),
      .numerics_id = message.model().numerics_id(),
      .max_sequences = static_cast<int>(message.capacity().max_sequences()),
      .kv_tokens = Signed(message.capacity().kv_tokens())};
  for (const v1::RunningRequest& running : message.running()) {
    registration.held.push_back({.seq = LiveSeq(running.request_id()),
                                 .attempt = static_cast<int>(running.attempt()),
                                 .held_from = running.held_from()});
  }
  absl::StatusOr<std::vector<ResumePoint>> points =
      queue_.Register(session.id, registration, clock_.Now(), actions_);
  if (!points.ok()) return EndSession(session, std::move(points).status());
  session.registered = true;
  session.identity = IdentityOf(message);
  telemetry_.RankAttached(message);
  session.defaults = message.defaults();
  RememberModel(message.model());
  v1::CoordinatorMessage answer;
  v1::Accepted& accepted = *answer.mutable_accepted();
  accepted.set_heartbeat_ms(
      static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.heartbeat)));
  accepted.set_reattach_ms(static_cast<uint32_t>(
      absl::ToInt64Milliseconds(options_.queue.reattach)));
  accepted.set_max_held_tokens(static_cast<uint32_t>(options_.max_held_tokens));
  for (size_t i = 0; i < points->size(); ++i) {
    const v1::RunningRequest& running = message.running(static_cast<int>(i));
    v1::Resume& resume = *accepted.add_resume();
    resume.set_request_id(running.request_id());
    resume.set_attempt(running.attempt());
    resume.set_drop((*points)[i].drop);
    resume.set_next_offset(static_cast<uint32_t>((*points)[i].next_offset));
  }
  Send(session, std::move(answer));
  if (!queue_.draining()) return;
  v1::CoordinatorMessage drain;
  drain.mutable_drain();
  Send(session, std::move(drain));
}

void RequestHub::RememberModel(const v1::ModelIdentity& model) {
  const std::string bytes = model.SerializeAsString();
  for (const v1::ModelIdentity& known : models_) {
    if (known.SerializeAsString() == bytes) return;
  }
  std::erase_if(models_, [&](const v1::ModelIdentity& known) {
    return known.name() == model.name() &&
           known.fingerprint() == model.fingerprint();
  });
  models_.push_back(model);
  Write(
      StoreThread::Durability::kProcess, /*never_fails=*/true,
      [model](RequestStore& store) { return store.SaveModel(model); },
      [](absl::Status) {});
}

void RequestHub::TakeTokens(Session& session, const v1::TokenBatch& batch) {
  for (const v1::TokenDelta& delta : batch.deltas()) {
    if (absl::Status valid = ValidateDelta(delta); !valid.ok()) {
      return EndSession(session, std::move(valid));
    }
  }
  auto work = std::make_shared<TokenWork>();
  work->session = session.id;
  work->now = clock_.Now();
  for (const v1::TokenDelta& delta : batch.deltas()) {
    TakeDelta(session, delta, *work);
  }
  if (work->items.empty()) return;
  Write(
      StoreThread::Durability::kProcess, /*never_fails=*/true,
      [work](RequestStore& store) {
        for (const TokenWork::Item& item : work->items) {
          if (item.delta.token_ids_size() > 0) {
            PORTOLAN_RETURN_IF_ERROR(
                store.AppendTokens(item.seq, item.delta, work->now));
          }
          if (!item.finish) continue;
          PORTOLAN_RETURN_IF_ERROR(
              store.Finish(item.seq, item.state, *item.finish, work->now));
        }
        return absl::OkStatus();
      },
      [this, work](absl::Status) { TokensKept(*work); });
}

void RequestHub::TakeDelta(Session& session, const v1::TokenDelta& delta,
                           TokenWork& work) {
  const int64_t seq = LiveSeq(delta.request_id());
  const RequestQueue::TokenCheck check =
      queue_.TakeTokens(session.id, seq, static_cast<int>(delta.attempt()),
                        delta.offset(), delta.token_ids_size(), work.now);
  using Verdict = RequestQueue::TokenCheck::Verdict;
  if (check.verdict == Verdict::kDrop) {
    return SendCancel(session.id, delta.request_id(),
                      static_cast<int>(delta.attempt()));
  }
  if (check.verdict == Verdict::kGap) {
    v1::CoordinatorMessage message;
    v1::Resend& resend = *message.mutable_resend();
    resend.set_request_id(delta.request_id());
    resend.set_attempt(delta.attempt());
    resend.set_next_offset(static_cast<uint32_t>(check.expected));
    return Send(session, std::move(message));
  }
  Tracked& tracked = tracked_.at(seq);
  TokenWork::Item item{.seq = seq,
                       .delta = After(delta, static_cast<int>(check.skip))};
  const int num_new = item.delta.token_ids_size();
  if (num_new > 0) {
    absl::Duration gap;
    if (tracked.taken.empty()) {
      tracked.stored.first_token = work.now;
      telemetry_.FirstToken(tracked.stored, work.now);
    } else {
      gap = work.now - tracked.last_token;
    }
    telemetry_.Tokens(tracked.stored, session.identity, num_new, gap);
    tracked.last_token = work.now;
    tracked.taken.insert(tracked.taken.end(), item.delta.token_ids().begin(),
                         item.delta.token_ids().end());
    totals_.set_tokens(totals_.tokens() + static_cast<uint64_t>(num_new));
    token_rate_.Add(num_new, work.now);
  }
  if (delta.has_finish() && !tracked.ending) {
    item.state = StateOf(delta.finish().reason());
    item.finish = Conclude(tracked, delta.finish());
    tracked.ending = true;
    queue_.Finish(seq, work.now);
  }
  work.items.push_back(std::move(item));
}

void RequestHub::TokensKept(const TokenWork& work) {
  Session* session = FindSession(work.session);
  for (const TokenWork::Item& item : work.items) {
    Tracked* tracked = FindTracked(item.seq);
    if (tracked == nullptr) continue;
    if (item.delta.token_ids_size() > 0) {
      if (tracked->log.size() == 0) NoteStart(tracked->stored);
      tracked->log.Append(item.delta);
    }
    if (session != nullptr) {
      v1::Durable& durable = *session->acks.add_durable();
      durable.set_request_id(tracked->stored.id);
      durable.set_attempt(item.delta.attempt());
      durable.set_next_offset(static_cast<uint32_t>(tracked->log.size()));
      durable.set_finished(item.finish.has_value());
    }
    if (item.finish) {
      EndKept(item.seq, item.state, *item.finish);
    } else {
      Publish(*tracked);
    }
  }
}

// An attempt that follows another one's death says nothing of starts.
void RequestHub::NoteStart(const StoredRequest& stored) {
  if (stored.queued.attempt != 1) return;
  if (stored.assigned == absl::InfiniteFuture()) return;
  const absl::Time now = clock_.Now();
  queue_.FirstTokenSent(stored.queued, now - stored.assigned, now);
}

void RequestHub::SendAssign(const QueueActions::Assignment& assignment) {
  Session* session = FindSession(assignment.session);
  Tracked* tracked = FindTracked(assignment.seq);
  const QueuedRequest* queued = queue_.Find(assignment.seq);
  if (session == nullptr || tracked == nullptr || queued == nullptr) return;
  StoredRequest& stored = tracked->stored;
  if (!stored.params) SaveFirstAssignment(*tracked, *session);
  v1::CoordinatorMessage message;
  v1::Assign& assign = *message.mutable_assign();
  assign.set_serial(assignment.serial);
  assign.set_request_id(stored.id);
  assign.set_attempt(static_cast<uint32_t>(assignment.attempt));
  if (stored.request.has_tokens()) {
    *assign.mutable_tokens() = stored.request.tokens();
  } else {
    assign.set_text(stored.request.text());
  }
  *assign.mutable_params() = *stored.params;
  assign.mutable_prefix()->Add(tracked->taken.begin(), tracked->taken.end());
  const absl::Time now = clock_.Now();
  assign.set_timeout_ms(MillisecondsUntil(queued->deadline, now));
  assign.set_start_within_ms(MillisecondsUntil(assignment.start_by, now));
  assign.set_traceparent(stored.traceparent);
  assign.set_max_prompt_tokens(static_cast<uint32_t>(
      std::clamp<int64_t>(options_.limits.max_prompt_tokens, 0, UINT32_MAX)));
  Send(*session, std::move(message));
}

void RequestHub::SaveFirstAssignment(Tracked& tracked, const Session& session) {
  StoredRequest& stored = tracked.stored;
  stored.assigned = clock_.Now();
  stored.params =
      MergeParams(stored.request.params(), session.defaults, stored.seed);
  Write(
      StoreThread::Durability::kProcess, /*never_fails=*/true,
      [seq = stored.queued.seq, when = stored.assigned,
       params = *stored.params](RequestStore& store) {
        return store.SaveFirstAssignment(seq, when, params);
      },
      [](absl::Status) {});
}

void RequestHub::SendCancel(uint64_t id, std::string_view request_id,
                            int attempt) {
  Session* session = FindSession(id);
  if (session == nullptr) return;
  v1::CoordinatorMessage message;
  message.mutable_cancel()->set_request_id(std::string(request_id));
  message.mutable_cancel()->set_attempt(static_cast<uint32_t>(attempt));
  Send(*session, std::move(message));
}

void RequestHub::Send(Session& session, v1::CoordinatorMessage message) {
  if (session.end) return;
  session.outgoing.push_back(std::move(message));
  PumpRank(session);
}

void RequestHub::PumpRank(Session& session) {
  if (session.writing || session.outgoing.empty()) return;
  session.writing = true;
  v1::CoordinatorMessage message = std::move(session.outgoing.front());
  session.outgoing.pop_front();
  session.stream->Send(std::move(message));
}

void RequestHub::RankWritten(const RankStream* stream, bool ok) {
  Post([this, stream, ok] {
    Session* session = FindSession(stream);
    if (session == nullptr) return;
    session->writing = false;
    if (session->end) {
      session->stream->End(*session->end);
      sessions_.erase(stream);
    } else if (ok) {
      PumpRank(*session);
    } else {
      EndSession(*session, absl::CancelledError("the rank went away"));
    }
  });
}

void RequestHub::RankGone(const RankStream* stream, absl::Status why) {
  Post([this, stream, why = std::move(why)]() mutable {
    Session* session = FindSession(stream);
    if (session == nullptr || session->end) return;
    EndSession(*session, std::move(why));
  });
}

void RequestHub::EndSession(Session& session, absl::Status status) {
  if (!stopping_) queue_.Disconnected(session.id, clock_.Now());
  sessions_by_id_.erase(session.id);
  if (std::exchange(session.registered, false)) {
    const RankIdentity& rank = session.identity;
    const bool replaced =
        std::ranges::any_of(sessions_, [&](const auto& entry) {
          const Session& other = entry.second;
          return other.registered && other.identity.job == rank.job &&
                 other.identity.rank == rank.rank;
        });
    telemetry_.RankEnded(rank, replaced, status);
  }
  if (session.writing) {
    session.end = std::move(status);
    return;
  }
  session.stream->End(std::move(status));
  sessions_.erase(session.stream.get());
}

}  // namespace portolan
