// RequestHub: who follows a request, and how far each has come.

#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/coordinator/hub.h"

namespace portolan {
namespace {

constexpr absl::Duration kSameMoment = absl::Milliseconds(50);
// Of a request that waited in vain.
constexpr absl::Duration kRetryNoSlot = absl::Seconds(1);

absl::Status EndStatus(const v1::Finish& finish) {
  if (finish.reason() != v1::FINISH_REASON_ERROR) return absl::OkStatus();
  absl::Status status(static_cast<absl::StatusCode>(finish.error().code()),
                      finish.error().message());
  if (!finish.error().field().empty()) {
    status = WithBadField(std::move(status), finish.error().field());
  }
  if (!absl::IsResourceExhausted(status)) return status;
  return WithRetryInfo(std::move(status), kRetryNoSlot);
}

}  // namespace

RequestHub::Watcher* RequestHub::AddWatcher(
    std::shared_ptr<ClientStream> stream, const std::string& client,
    bool owner) {
  const ClientStream* key = stream.get();
  Watcher& watcher = watchers_[key];
  watcher.id = next_watcher_++;
  watchers_by_id_[watcher.id] = &watcher;
  watcher.stream = std::move(stream);
  watcher.client = client;
  ++num_streams_[client];
  watcher.owner = owner;
  return &watcher;
}

absl::Status RequestHub::CheckStreams(const Watcher& watcher) const {
  const int64_t most = options_.max_client_streams;
  if (most == 0 || num_streams_.at(watcher.client) <= most) {
    return absl::OkStatus();
  }
  return WithRetryInfo(
      absl::ResourceExhaustedError(absl::StrCat(
          "client '", watcher.client, "' has ", most,
          " calls of Generate and Watch open, its limit (--client-streams)")),
      kRetryNoSlot);
}

RequestHub::Watcher* RequestHub::FindWatcher(uint64_t id) {
  const auto watcher = watchers_by_id_.find(id);
  return watcher == watchers_by_id_.end() ? nullptr : watcher->second;
}

void RequestHub::Watch(Caller caller, v1::WatchRequest request,
                       std::shared_ptr<ClientStream> stream) {
  absl::Status valid = ValidateWatch(request);
  Post([this, caller = std::move(caller), request = std::move(request),
        stream = std::move(stream), valid = std::move(valid)]() mutable {
    Watcher* watcher =
        AddWatcher(std::move(stream), caller.client, /*owner=*/false);
    if (valid.ok()) valid = CheckStreams(*watcher);
    if (!valid.ok()) return EndWatcher(watcher, std::move(valid));
    watcher->offset = request.from_offset();
    Load(caller, request.request_id(),
         [this, id = watcher->id](absl::StatusOr<Tracked*> tracked) {
           Watcher* still = FindWatcher(id);
           if (still == nullptr) return;  // it went meanwhile
           if (!tracked.ok()) {
             return EndWatcher(still, std::move(tracked).status());
           }
           AttachWatcher(still, **tracked);
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
  const auto streams = num_streams_.find(watcher->client);
  if (--streams->second == 0) num_streams_.erase(streams);
  watchers_by_id_.erase(watcher->id);
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

}  // namespace portolan
