// RequestHub: how a request comes in.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cluster/coordinator/hub.h"
#include "cluster/coordinator/params.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr absl::Duration kRetryFullDisk = absl::Seconds(10);

// r<seq>-<random>: the number finds the row, the random part makes it hard to
// guess.
std::string MakeRequestId(int64_t seq, uint64_t random) {
  return absl::StrFormat("r%d-%016x", seq, random);
}

// Says when, if the store could not take it for now.
absl::Status ComeBackLater(absl::Status status) {
  if (!absl::IsResourceExhausted(status) && !absl::IsUnavailable(status)) {
    return status;
  }
  return WithRetryInfo(std::move(status), kRetryFullDisk);
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

}  // namespace

void RequestHub::Submit(Caller caller, v1::GenerateRequest request,
                        Reply<v1::SubmitResponse> reply) {
  absl::Status valid = ValidateGenerate(request, options_.limits);
  Post([this, caller = std::move(caller), request = std::move(request),
        reply = std::move(reply), valid = std::move(valid)]() mutable {
    if (!valid.ok()) {
      return reply(Refused(caller, request.model(), std::move(valid)));
    }
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
    Watcher* watcher =
        AddWatcher(std::move(stream), caller.client, /*owner=*/true);
    if (valid.ok()) valid = CheckStreams(*watcher);
    if (!valid.ok()) {
      return EndWatcher(watcher,
                        Refused(caller, request.model(), std::move(valid)));
    }
    Accept(caller, std::move(request), /*detached=*/false, watcher,
           [this, id = watcher->id](absl::StatusOr<int64_t> seq, bool) {
             Watcher* still = FindWatcher(id);
             if (still == nullptr) return;  // it went meanwhile
             if (!seq.ok()) return EndWatcher(still, std::move(seq).status());
             AttachWatcher(still, tracked_.at(*seq));
           });
  });
}

void RequestHub::Accept(const Caller& caller, v1::GenerateRequest request,
                        bool detached, Watcher* watcher, Accepted reply) {
  if (queue_.draining() || stopping_) {
    return reply(Refused(caller, request.model(), Stopping()), false);
  }
  const std::string key = request.idempotency_key();
  if (key.empty()) {
    return AcceptNew(caller, std::move(request), detached, watcher,
                     std::move(reply));
  }
  // A retry must find its request even where a new one would be refused.
  auto found = std::make_shared<std::optional<StoredRequest>>();
  const uint64_t watcher_id = watcher == nullptr ? 0 : watcher->id;
  Write(
      StoreThread::Durability::kRead, /*never_fails=*/false,
      [found, client = caller.client, key](RequestStore& store) {
        PORTOLAN_ASSIGN_OR_RETURN(*found, store.FindByKey(client, key));
        return absl::OkStatus();
      },
      [this, found, caller, request = std::move(request), detached, watcher_id,
       reply = std::move(reply)](absl::Status status) mutable {
        if (!status.ok()) {
          return reply(Refused(caller, request.model(), std::move(status)),
                       false);
        }
        if (*found) {
          const std::string sent = request.SerializeAsString();
          if ((*found)->request.SerializeAsString() != sent) {
            absl::Status other = absl::AlreadyExistsError(
                absl::StrCat("idempotency_key '", request.idempotency_key(),
                             "' belongs to another request, ", (*found)->id));
            return reply(Refused(caller, request.model(), std::move(other)),
                         true);
          }
          return TakeUp(caller, (*found)->id, detached, std::move(reply));
        }
        Watcher* still = FindWatcher(watcher_id);
        if (watcher_id != 0 && still == nullptr) return;  // it went meanwhile
        AcceptNew(caller, std::move(request), detached, still,
                  std::move(reply));
      });
}

void RequestHub::AcceptNew(const Caller& caller, v1::GenerateRequest request,
                           bool detached, Watcher* watcher, Accepted reply) {
  const std::string model = request.model();
  absl::StatusOr<StoredRequest> stored =
      Compose(caller, std::move(request), detached);
  if (!stored.ok()) {
    return reply(Refused(caller, model, std::move(stored).status()), false);
  }
  const absl::Time now = clock_.Now();
  RequestQueue::Refusal refusal = queue_.Admit(stored->queued, now);
  if (!refusal.status.ok()) {
    absl::Status status = Refused(caller, model, std::move(refusal.status));
    // Later it would be refused just the same.
    if (absl::IsOutOfRange(status)) {
      return reply(WithBadField(std::move(status), "params.max_tokens"), false);
    }
    return reply(WithRetryInfo(std::move(status), refusal.retry_after), false);
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

absl::Status RequestHub::Refused(const Caller& caller, const std::string& model,
                                 absl::Status status) {
  // Only names of models: callers must not make series of their own.
  const absl::StatusOr<const v1::ModelIdentity*> known = FindModel(model);
  const bool named = known.ok() && *known != nullptr;
  totals_.set_rejected(totals_.rejected() + 1);
  telemetry_.Rejected(caller.client, caller.request_id,
                      named ? (*known)->name() : "", status);
  return status;
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
  if (model != nullptr) queued.label = model->name();
  queued.prompt_tokens = PromptTokens(request);
  queued.max_tokens = request.params().has_max_tokens()
                          ? request.params().max_tokens()
                          : kDefaultMaxTokens;
  queued.deadline = Deadline(stored.created, request, caller, detached);
  stored.id = MakeRequestId(queued.seq, random_());
  stored.request = std::move(request);
  return stored;
}

// Among the models that ranks serve now or, if none is there, those that ranks
// served since the data directory began. nullptr: none is known yet.
absl::StatusOr<const v1::ModelIdentity*> RequestHub::FindOnlyModel() const {
  const auto is_served = [this](const v1::ModelIdentity& model) {
    return std::ranges::any_of(sessions_, [&](const auto& entry) {
      return entry.second.registered &&
             entry.second.identity.model_name == model.name();
    });
  };
  const bool any_served = std::ranges::any_of(models_, is_served);
  const v1::ModelIdentity* only = nullptr;
  for (const v1::ModelIdentity& model : models_) {
    if (any_served && !is_served(model)) continue;
    if (only != nullptr && only->name() != model.name()) {
      return FieldError(
          absl::StatusCode::kInvalidArgument, "model",
          absl::StrCat("is empty, and there are several: '", only->name(),
                       "', '", model.name(), "' ..."));
    }
    only = &model;
  }
  return only;
}

absl::StatusOr<const v1::ModelIdentity*> RequestHub::FindModel(
    const std::string& name) const {
  if (name.empty()) return FindOnlyModel();
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
  status = ComeBackLater(std::move(status));
  const bool detached = tracked.stored.queued.detached;
  Reject(seq, status);
  if (!status.ok()) return reply(std::move(status), existing.has_value());
  TakeUp(caller, existing->id, detached, std::move(reply));
}

// What Submit returns outlives all calls, also if Generate had brought it: at
// once here, so that its client may go meanwhile, and on disk before the
// answer.
void RequestHub::TakeUp(const Caller& caller, const std::string& id,
                        bool detached, Accepted reply) {
  Load(caller, id,
       [this, detached,
        reply = std::move(reply)](absl::StatusOr<Tracked*> found) mutable {
         if (!found.ok()) return reply(std::move(found).status(), true);
         Tracked& tracked = **found;
         StoredRequest& stored = tracked.stored;
         const int64_t seq = stored.queued.seq;
         const bool kept = stored.queued.detached && !tracked.must_detach;
         if (!detached || kept || tracked.log.finished()) {
           return reply(seq, true);
         }
         // Each caller waits for a write of its own: an earlier one may fail.
         const absl::Time deadline =
             Deadline(stored.created, stored.request, {}, /*detached=*/true);
         if (!stored.queued.detached) {
           tracked.must_detach = true;
           stored.queued.detached = true;
           stored.queued.deadline = deadline;
           queue_.Detach(seq, deadline);
         }
         Write(
             StoreThread::Durability::kDisk, /*never_fails=*/false,
             [seq, deadline](RequestStore& store) {
               return store.SaveDetached(seq, deadline);
             },
             [this, id = stored.id,
              reply = std::move(reply)](absl::Status status) mutable {
               if (!status.ok()) {
                 return reply(ComeBackLater(std::move(status)), true);
               }
               // It may have ended, and been forgotten, meanwhile.
               Load({.sees_all = true}, id,
                    [reply = std::move(reply)](
                        absl::StatusOr<Tracked*> again) mutable {
                      if (!again.ok()) {
                        return reply(std::move(again).status(), true);
                      }
                      (*again)->must_detach = false;
                      reply((*again)->stored.queued.seq, true);
                    });
             });
       });
}

// Takes back an admission that could not be kept.
void RequestHub::Reject(int64_t seq, const absl::Status& status) {
  const Tracked& tracked = tracked_.at(seq);
  if (!status.ok()) {
    const Caller caller{.client = tracked.stored.queued.client,
                        .request_id = tracked.stored.x_request_id};
    (void)Refused(caller, tracked.stored.queued.model, status);
  }
  for (Watcher* watcher : tracked.watchers) watcher->seq = 0;
  QueueActions actions;
  queue_.Cancel(seq, status, actions);
  actions.ended.clear();  // nobody was told of it
  Apply(std::move(actions));
  tracked_.erase(seq);
}

}  // namespace portolan
