// RequestHub: what clients ask about requests that are there.

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cluster/coordinator/hub.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

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
