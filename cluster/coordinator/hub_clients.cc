#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cluster/coordinator/hub.h"
#include "cluster/coordinator/params.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr absl::Duration kRetryFullDisk = absl::Seconds(10);
constexpr absl::Duration kSameMoment = absl::Milliseconds(50);

// r<seq>-<random>: the number finds the row, the random part makes it hard to
// guess.
std::string MakeRequestId(int64_t seq, uint64_t random) {
  return absl::StrFormat("r%d-%016x", seq, random);
}

// 0: not one of ours.
int64_t SeqOfId(std::string_view id) {
  const size_t dash = id.find('-');
  int64_t seq = 0;
  if (dash == std::string_view::npos || id.empty() || id[0] != 'r' ||
      !absl::SimpleAtoi(std::string(id.substr(1, dash - 1)), &seq) || seq < 0) {
    return 0;
  }
  return seq;
}

absl::Status NoSuchRequest(std::string_view id) {
  return absl::NotFoundError(
      absl::StrCat("there is no request '", std::string(id),
                   "'; it may be older than --retention"));
}

bool MaySee(const Caller& caller, const StoredRequest& stored) {
  return caller.sees_all || caller.client == stored.queued.client;
}

// A detached request outlives its call, and so the deadline of that.
absl::Time Deadline(absl::Time now, const v1::GenerateRequest& request,
                    const Caller& caller, bool detached) {
  absl::Duration time = detached ? absl::InfiniteDuration() : caller.time_left;
  if (request.has_timeout()) {
    time = std::min(time, absl::Seconds(request.timeout().seconds()) +
                              absl::Nanoseconds(request.timeout().nanos()));
  }
  return now + time;
}

absl::Status EndStatus(const v1::Finish& finish) {
  if (finish.reason() != v1::FINISH_REASON_ERROR) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(finish.error().code()),
                      finish.error().message());
}

v1::RequestInfo Summary(const StoredRequest& stored) {
  v1::RequestInfo info;
  info.set_request_id(stored.id);
  info.set_custom_id(stored.request.custom_id());
  info.set_model(stored.queued.model);
  info.set_state(static_cast<v1::RequestState>(stored.queued.state));
  const auto set = [](google::protobuf::Timestamp& to, absl::Time time) {
    const int64_t micros = absl::ToUnixMicros(time);
    to.set_seconds(micros / 1'000'000);
    to.set_nanos(static_cast<int32_t>(micros % 1'000'000 * 1000));
  };
  set(*info.mutable_created(), stored.created);
  if (stored.ended != absl::InfiniteFuture()) {
    set(*info.mutable_ended(), stored.ended);
  }
  info.set_attempt(static_cast<uint32_t>(stored.queued.attempt));
  info.set_num_tokens(static_cast<uint32_t>(stored.queued.num_tokens));
  info.set_seed(stored.seed);
  if (stored.finish) *info.mutable_finish() = *stored.finish;
  return info;
}

}  // namespace

// -- Admission --

void RequestHub::Submit(Caller caller, v1::GenerateRequest request,
                        Reply<v1::SubmitResponse> reply) {
  absl::Status valid = ValidateGenerate(request, options_.limits);
  if (!valid.ok()) {
    telemetry_.Rejected(caller.client, caller.request_id, valid);
    return reply(std::move(valid));
  }
  Post([this, caller = std::move(caller), request = std::move(request),
        reply = std::move(reply)]() mutable {
    Accept(caller, std::move(request), /*detached=*/true, nullptr,
           [this, reply = std::move(reply)](absl::StatusOr<int64_t> seq,
                                            bool existed) mutable {
             if (!seq.ok()) return reply(std::move(seq).status());
             const StoredRequest& stored = tracked_.at(*seq).stored;
             v1::SubmitResponse response;
             response.set_request_id(stored.id);
             response.set_existed(existed);
             response.set_seed(stored.seed);
             reply(std::move(response));
           });
  });
}

void RequestHub::Generate(Caller caller, v1::GenerateRequest request,
                          std::shared_ptr<ClientStream> stream) {
  absl::Status valid = ValidateGenerate(request, options_.limits);
  Post([this, caller = std::move(caller), request = std::move(request),
        stream = std::move(stream), valid = std::move(valid)]() mutable {
    Watcher* watcher = AddWatcher(std::move(stream), /*owner=*/true);
    if (!valid.ok()) {
      telemetry_.Rejected(caller.client, caller.request_id, valid);
      return EndWatcher(watcher, std::move(valid));
    }
    const ClientStream* key = watcher->stream.get();
    Accept(caller, std::move(request), /*detached=*/false, watcher,
           [this, key](absl::StatusOr<int64_t> seq, bool) {
             const auto found = watchers_.find(key);
             if (found == watchers_.end()) return;  // it went meanwhile
             if (!seq.ok()) {
               return EndWatcher(&found->second, std::move(seq).status());
             }
             AttachWatcher(&found->second, tracked_.at(*seq));
           });
  });
}

void RequestHub::Accept(const Caller& caller, v1::GenerateRequest request,
                        bool detached, Watcher* watcher, Accepted reply) {
  if (queue_.draining() || stopping_) return reply(Stopping(), false);
  const std::string key = request.idempotency_key();
  if (key.empty()) {
    return AcceptNew(caller, std::move(request), detached, watcher,
                     std::move(reply));
  }
  // A retry must find its request even where a new one would be refused.
  auto found = std::make_shared<std::optional<StoredRequest>>();
  const ClientStream* stream = watcher ? watcher->stream.get() : nullptr;
  Write(
      StoreThread::Durability::kRead, /*never_fails=*/false,
      [found, client = caller.client, key](RequestStore& store) {
        PORTOLAN_ASSIGN_OR_RETURN(*found, store.FindByKey(client, key));
        return absl::OkStatus();
      },
      [this, found, caller, request = std::move(request), detached, stream,
       reply = std::move(reply)](absl::Status status) mutable {
        if (!status.ok()) return reply(std::move(status), false);
        if (*found) {
          const std::string sent = request.SerializeAsString();
          if ((*found)->request.SerializeAsString() != sent) {
            return reply(absl::AlreadyExistsError(absl::StrCat(
                             "idempotency_key '", request.idempotency_key(),
                             "' belongs to another request, ", (*found)->id)),
                         true);
          }
          const std::string id = (*found)->id;
          return Load(caller, id,
                      [reply = std::move(reply)](
                          absl::StatusOr<Tracked*> tracked) mutable {
                        if (!tracked.ok()) {
                          return reply(std::move(tracked).status(), true);
                        }
                        reply((*tracked)->stored.queued.seq, true);
                      });
        }
        const auto still = watchers_.find(stream);
        if (stream != nullptr && still == watchers_.end()) return;
        AcceptNew(caller, std::move(request), detached,
                  stream == nullptr ? nullptr : &still->second,
                  std::move(reply));
      });
}

void RequestHub::AcceptNew(const Caller& caller, v1::GenerateRequest request,
                           bool detached, Watcher* watcher, Accepted reply) {
  absl::StatusOr<StoredRequest> stored =
      Compose(caller, std::move(request), detached);
  if (!stored.ok()) {
    totals_.set_rejected(totals_.rejected() + 1);
    telemetry_.Rejected(caller.client, caller.request_id, stored.status());
    return reply(std::move(stored).status(), false);
  }
  const absl::Time now = clock_.Now();
  RequestQueue::Refusal refusal = queue_.Admit(stored->queued, now);
  if (!refusal.status.ok()) {
    totals_.set_rejected(totals_.rejected() + 1);
    telemetry_.Rejected(caller.client, caller.request_id, refusal.status);
    return reply(WithRetryInfo(std::move(refusal.status), refusal.retry_after),
                 false);
  }
  const int64_t seq = stored->queued.seq;
  Tracked& tracked = tracked_[seq];
  tracked.stored = *std::move(stored);
  if (watcher != nullptr) {
    // From now on, so that its going cancels.
    watcher->seq = seq;
    tracked.watchers.insert(watcher);
    queue_.WatcherCame(seq);
  }
  auto existing = std::make_shared<std::optional<StoredRequest>>();
  Write(
      StoreThread::Durability::kDisk, /*never_fails=*/false,
      [existing, record = tracked.stored](RequestStore& store) {
        PORTOLAN_RETURN_IF_ERROR(store.CheckRoom());
        PORTOLAN_ASSIGN_OR_RETURN(*existing, store.Insert(record));
        return absl::OkStatus();
      },
      [this, seq, existing,
       reply = std::move(reply)](absl::Status status) mutable {
        InsertDone(seq, std::move(status), std::move(*existing),
                   std::move(reply));
      });
}

absl::StatusOr<StoredRequest> RequestHub::Compose(const Caller& caller,
                                                  v1::GenerateRequest request,
                                                  bool detached) {
  PORTOLAN_ASSIGN_OR_RETURN(const v1::ModelIdentity* model,
                            FindModel(request.model()));
  if (model != nullptr) {
    PORTOLAN_RETURN_IF_ERROR(ValidateForModel(request, *model));
  }
  StoredRequest stored;
  stored.created = clock_.Now();
  stored.traceparent = caller.traceparent;
  stored.x_request_id = caller.request_id;
  stored.seed =
      request.params().has_seed() ? request.params().seed() : random_();
  QueuedRequest& queued = stored.queued;
  queued.seq = next_seq_++;
  queued.client = caller.client;
  queued.detached = detached;
  queued.model = request.model();
  if (queued.model.empty() && model != nullptr) queued.model = model->name();
  queued.prompt_tokens = PromptTokens(request);
  queued.max_tokens = request.params().has_max_tokens()
                          ? request.params().max_tokens()
                          : kDefaultMaxTokens;
  queued.deadline = Deadline(stored.created, request, caller, detached);
  stored.id = MakeRequestId(queued.seq, random_());
  stored.request = std::move(request);
  return stored;
}

// nullptr: it does not matter which, for none is known yet.
absl::StatusOr<const v1::ModelIdentity*> RequestHub::FindModel(
    const std::string& name) const {
  if (name.empty()) {
    if (models_.empty()) return nullptr;
    for (const v1::ModelIdentity& model : models_) {
      if (model.name() == models_.front().name()) continue;
      return FieldError(
          absl::StatusCode::kInvalidArgument, "model",
          absl::StrCat("is empty, and there are several: '",
                       models_.front().name(), "', '", model.name(), "' ..."));
    }
    return &models_.back();
  }
  for (auto model = models_.rbegin(); model != models_.rend(); ++model) {
    if (model->name() == name || model->fingerprint() == name) return &*model;
  }
  std::string known;
  for (const v1::ModelIdentity& model : models_) {
    absl::StrAppend(&known, known.empty() ? "" : ", ", model.name());
  }
  return FieldError(absl::StatusCode::kNotFound, "model",
                    absl::StrCat("is '", name, "', which no job serves; known ",
                                 "are: ", known.empty() ? "none yet" : known));
}

void RequestHub::InsertDone(int64_t seq, absl::Status status,
                            std::optional<StoredRequest> existing,
                            Accepted reply) {
  Tracked& tracked = tracked_.at(seq);
  if (status.ok() && !existing) {
    tracked.durable = true;
    totals_.set_accepted(totals_.accepted() + 1);
    telemetry_.Accepted(tracked.stored);
    reply(seq, false);
    Publish(tracked);
    return;
  }
  // Another call with the same key was first.
  const bool same = existing && existing->request.SerializeAsString() ==
                                    tracked.stored.request.SerializeAsString();
  const Caller caller{.client = tracked.stored.queued.client,
                      .sees_all = false};
  if (status.ok() && !same) {
    status = absl::AlreadyExistsError(absl::StrCat(
        "idempotency_key '", tracked.stored.request.idempotency_key(),
        "' belongs to another request, ", existing->id));
  }
  if (absl::IsResourceExhausted(status)) {
    status = WithRetryInfo(std::move(status), kRetryFullDisk);
  }
  Reject(seq, status);
  if (!status.ok()) return reply(std::move(status), existing.has_value());
  Load(caller, existing->id,
       [reply = std::move(reply)](absl::StatusOr<Tracked*> found) mutable {
         if (!found.ok()) return reply(std::move(found).status(), true);
         reply((*found)->stored.queued.seq, true);
       });
}

// Takes back an admission that could not be kept.
void RequestHub::Reject(int64_t seq, const absl::Status& status) {
  const Tracked& tracked = tracked_.at(seq);
  if (!status.ok()) {
    totals_.set_rejected(totals_.rejected() + 1);
    telemetry_.Rejected(tracked.stored.queued.client,
                        tracked.stored.x_request_id, status);
  }
  for (Watcher* watcher : tracked.watchers) watcher->seq = 0;
  QueueActions actions;
  queue_.Cancel(seq, status, actions);
  actions.ended.clear();  // nobody was told of it
  Apply(std::move(actions));
  tracked_.erase(seq);
}

// -- Watchers --

RequestHub::Watcher* RequestHub::AddWatcher(
    std::shared_ptr<ClientStream> stream, bool owner) {
  const ClientStream* key = stream.get();
  Watcher& watcher = watchers_[key];
  watcher.stream = std::move(stream);
  watcher.owner = owner;
  return &watcher;
}

void RequestHub::Watch(Caller caller, v1::WatchRequest request,
                       std::shared_ptr<ClientStream> stream) {
  absl::Status valid = ValidateWatch(request);
  Post([this, caller = std::move(caller), request = std::move(request),
        stream = std::move(stream), valid = std::move(valid)]() mutable {
    Watcher* watcher = AddWatcher(std::move(stream), /*owner=*/false);
    if (!valid.ok()) return EndWatcher(watcher, std::move(valid));
    watcher->offset = request.from_offset();
    const ClientStream* key = watcher->stream.get();
    Load(caller, request.request_id(),
         [this, key](absl::StatusOr<Tracked*> tracked) {
           const auto found = watchers_.find(key);
           if (found == watchers_.end()) return;  // it went meanwhile
           if (!tracked.ok()) {
             return EndWatcher(&found->second, std::move(tracked).status());
           }
           AttachWatcher(&found->second, **tracked);
         });
  });
}

void RequestHub::AttachWatcher(Watcher* watcher, Tracked& tracked) {
  if (watcher->seq == 0) {
    watcher->seq = tracked.stored.queued.seq;
    tracked.watchers.insert(watcher);
    queue_.WatcherCame(watcher->seq);
  }
  Pump(watcher);
}

// Gives a watcher what it has not got yet, if it can take it.
void RequestHub::Pump(Watcher* watcher) {
  if (watcher->writing) return;
  if (watcher->end) return EndWatcher(watcher, *watcher->end);
  if (stopping_) return EndWatcher(watcher, Stopping());
  const Tracked& tracked = tracked_.at(watcher->seq);
  if (!tracked.durable) return;
  v1::GenerateResponse message;
  message.set_request_id(tracked.stored.id);
  message.set_attempt(static_cast<uint32_t>(tracked.stored.queued.attempt));
  message.set_offset(static_cast<uint32_t>(watcher->offset));
  if (!watcher->greeted) {
    watcher->greeted = true;
    message.set_seed(tracked.stored.seed);
    message.set_custom_id(tracked.stored.request.custom_id());
  } else if (tracked.log.HasNews(watcher->offset)) {
    watcher->offset = tracked.log.Read(watcher->offset, message);
    if (message.has_finish()) watcher->end = EndStatus(message.finish());
  } else {
    return;
  }
  watcher->writing = true;
  watcher->stream->Send(std::move(message));
}

void RequestHub::ClientWritten(const ClientStream* stream, bool ok) {
  Post([this, stream, ok] {
    const auto found = watchers_.find(stream);
    if (found == watchers_.end()) return;
    Watcher& watcher = found->second;
    watcher.writing = false;
    if (!ok && !watcher.end) {
      return EndWatcher(&watcher, absl::CancelledError("the client went away"));
    }
    Pump(&watcher);
  });
}

void RequestHub::ClientGone(const ClientStream* stream) {
  Post([this, stream] {
    const auto found = watchers_.find(stream);
    if (found == watchers_.end()) return;
    EndWatcher(&found->second, absl::CancelledError("the client went away"));
  });
}

void RequestHub::EndWatcher(Watcher* watcher, absl::Status status) {
  if (watcher->writing) {
    watcher->end = std::move(status);
    return;
  }
  watcher->stream->End(std::move(status));
  DropWatcher(watcher);
}

void RequestHub::DropWatcher(Watcher* watcher) {
  const int64_t seq = watcher->seq;
  const bool owner = watcher->owner;
  if (Tracked* tracked = FindTracked(seq); tracked != nullptr) {
    tracked->watchers.erase(watcher);
  }
  watchers_.erase(watcher->stream.get());
  // A stop keeps what clients wait for, and they come back.
  if (seq == 0 || stopping_) return;
  const absl::Time now = clock_.Now();
  const QueuedRequest* queued = queue_.Find(seq);
  // The call's own deadline ends it just before the request's timer.
  const bool timed_out =
      queued != nullptr && queued->deadline <= now + kSameMoment;
  queue_.WatcherWent(seq, owner && !timed_out, now, actions_);
  ForgetIfDone(seq);
}

// -- Requests --

RequestHub::Tracked* RequestHub::FindLive(const Caller& caller,
                                          std::string_view id) {
  Tracked* tracked = FindTracked(SeqOfId(id));
  if (tracked == nullptr || tracked->stored.id != id ||
      !MaySee(caller, tracked->stored)) {
    return nullptr;
  }
  return tracked;
}

int64_t RequestHub::LiveSeq(std::string_view id) const {
  const auto tracked = tracked_.find(SeqOfId(id));
  if (tracked == tracked_.end() || tracked->second.stored.id != id) return -1;
  return tracked->first;
}

void RequestHub::Load(const Caller& caller, const std::string& id,
                      absl::AnyInvocable<void(absl::StatusOr<Tracked*>)> use) {
  if (Tracked* tracked = FindLive(caller, id); tracked != nullptr) {
    return use(tracked);
  }
  struct Loaded {
    std::optional<StoredRequest> stored;
    std::vector<v1::TokenDelta> deltas;
  };
  auto loaded = std::make_shared<Loaded>();
  Write(
      StoreThread::Durability::kRead, /*never_fails=*/false,
      [loaded, seq = SeqOfId(id)](RequestStore& store) {
        PORTOLAN_ASSIGN_OR_RETURN(loaded->stored, store.Find(seq));
        PORTOLAN_ASSIGN_OR_RETURN(loaded->deltas, store.Tokens(seq));
        return absl::OkStatus();
      },
      [this, loaded, caller, id,
       use = std::move(use)](absl::Status status) mutable {
        if (!status.ok()) return use(std::move(status));
        if (Tracked* tracked = FindLive(caller, id); tracked != nullptr) {
          return use(tracked);
        }
        const bool known = loaded->stored && loaded->stored->id == id &&
                           loaded->stored->finish.has_value() &&
                           MaySee(caller, *loaded->stored);
        if (!known) return use(NoSuchRequest(id));
        const int64_t seq = loaded->stored->queued.seq;
        Tracked& tracked = tracked_[seq];
        for (const v1::TokenDelta& delta : loaded->deltas) {
          if (delta.offset() == tracked.log.size()) tracked.log.Append(delta);
        }
        tracked.durable = true;
        tracked.ending = true;
        tracked.log.Finish(*loaded->stored->finish);
        tracked.stored = *std::move(loaded->stored);
        use(&tracked);
        ForgetIfDone(seq);
      });
}

v1::RequestInfo RequestHub::Describe(const Tracked& tracked,
                                     bool with_output) const {
  v1::RequestInfo info = Summary(tracked.stored);
  info.set_num_tokens(static_cast<uint32_t>(tracked.log.size()));
  if (tracked.stored.queued.state == RequestState::kQueued) {
    info.set_queue_position(
        static_cast<uint32_t>(queue_.Position(tracked.stored.queued.seq)));
  }
  if (with_output) {
    info.mutable_token_ids()->Add(tracked.log.tokens().begin(),
                                  tracked.log.tokens().end());
    info.set_text(tracked.log.Text());
  }
  return info;
}

void RequestHub::Get(Caller caller, v1::GetRequest request,
                     Reply<v1::RequestInfo> reply) {
  absl::Status valid = ValidateGet(request);
  if (!valid.ok()) return reply(std::move(valid));
  Post([this, caller = std::move(caller), request = std::move(request),
        reply = std::move(reply)]() mutable {
    Load(caller, request.request_id(),
         [this, reply = std::move(reply), output = request.include_output()](
             absl::StatusOr<Tracked*> tracked) mutable {
           if (!tracked.ok()) return reply(std::move(tracked).status());
           reply(Describe(**tracked, output));
         });
  });
}

void RequestHub::Cancel(Caller caller, v1::CancelRequest request,
                        Reply<v1::RequestInfo> reply) {
  absl::Status valid = ValidateCancel(request);
  if (!valid.ok()) return reply(std::move(valid));
  Post([this, caller = std::move(caller), request = std::move(request),
        reply = std::move(reply)]() mutable {
    Load(caller, request.request_id(),
         [this,
          reply = std::move(reply)](absl::StatusOr<Tracked*> found) mutable {
           if (!found.ok()) return reply(std::move(found).status());
           Tracked& tracked = **found;
           if (tracked.log.finished()) return reply(Describe(tracked, false));
           if (stopping_) return reply(Stopping());
           const int64_t seq = tracked.stored.queued.seq;
           queue_.Cancel(seq, absl::CancelledError("cancelled by its client"),
                         actions_);
           tracked.on_end.push_back([this, seq, reply = std::move(reply)](
                                        absl::Status status) mutable {
             if (!status.ok()) return reply(std::move(status));
             reply(Describe(tracked_.at(seq), false));
           });
         });
  });
}

void RequestHub::List(Caller caller, v1::ListRequest request,
                      Reply<v1::ListResponse> reply) {
  absl::Status valid = ValidateList(request);
  RequestStore::ListFilter filter;
  if (!request.page_token().empty() &&
      !absl::SimpleAtoi(request.page_token(), &filter.before_seq)) {
    valid = FieldError(absl::StatusCode::kInvalidArgument, "page_token",
                       "is none that List gave");
  }
  if (!valid.ok()) return reply(std::move(valid));
  if (!caller.sees_all) filter.client = caller.client;
  filter.limit = request.page_size() == 0 ? 100 : request.page_size();
  if (request.states_size() > 0) filter.states = 0;
  for (const int state : request.states()) filter.states |= 1u << state;
  auto found = std::make_shared<std::vector<StoredRequest>>();
  // By way of the hub's thread, for its writes come first.
  Post([this, filter, found, reply = std::move(reply)]() mutable {
    Write(
        StoreThread::Durability::kRead, /*never_fails=*/false,
        [filter, found](RequestStore& store) {
          PORTOLAN_ASSIGN_OR_RETURN(*found, store.List(filter));
          return absl::OkStatus();
        },
        [found, filter, reply = std::move(reply)](absl::Status status) mutable {
          if (!status.ok()) return reply(std::move(status));
          v1::ListResponse response;
          for (const StoredRequest& stored : *found) {
            *response.add_requests() = Summary(stored);
          }
          if (static_cast<int64_t>(found->size()) == filter.limit) {
            response.set_next_page_token(
                absl::StrCat(found->back().queued.seq));
          }
          reply(std::move(response));
        });
  });
}

}  // namespace portolan
