#include "cluster/coordinator/hub.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/steady_now.h"

namespace portolan {
namespace {

// Retention in pieces, so that tokens never wait long.
constexpr int64_t kForgetAtOnce = 100;
constexpr absl::Duration kRetryAfterStop = absl::Seconds(5);

std::mt19937_64 RandomGenerator() {
  std::random_device device;
  std::seed_seq seed{device(), device(), device(), device()};
  return std::mt19937_64(seed);
}

void AddFigures(const v1::RankMetrics& metrics, v1::RankStats& rank) {
  rank.set_steps(metrics.steps());
  rank.set_expert_hits(metrics.expert_hits());
  rank.set_expert_late(metrics.expert_late());
  rank.set_expert_misses(metrics.expert_misses());
  rank.set_expert_stall_s(metrics.expert_stall_s());
  rank.set_expert_memory_bytes(metrics.expert_capacity_bytes());
}

}  // namespace

RequestHub::RequestHub(const HubOptions& options, absl::Time wall_now,
                       absl::Time not_before, Telemetry& telemetry)
    : options_(options),
      clock_(wall_now, not_before),
      telemetry_(telemetry),
      queue_(options.queue),
      random_(RandomGenerator()),
      start_(clock_.Now()) {}

absl::StatusOr<std::unique_ptr<RequestHub>> RequestHub::Start(
    const HubOptions& options, absl::Time wall_now,
    std::unique_ptr<RequestStore> store, Telemetry& telemetry) {
  PORTOLAN_RETURN_IF_ERROR(options.queue.Validate());
  PORTOLAN_ASSIGN_OR_RETURN(const absl::Time last_time, store->LastTime());
  std::unique_ptr<RequestHub> hub(
      new RequestHub(options, wall_now, last_time, telemetry));
  PORTOLAN_RETURN_IF_ERROR(hub->Recover(*store));
  RequestHub* self = hub.get();
  auto housekeeping = [self](RequestStore& kept) {
    const absl::Time now = self->clock_.Now();
    if (!kept.Begin(/*durable=*/false).ok()) return false;
    (void)kept.SaveTime(now);
    const auto gone = kept.Retain(self->options_.retention, now, kForgetAtOnce);
    if (!kept.Commit().ok()) return false;
    return gone.ok() && *gone == kForgetAtOnce;
  };
  hub->store_ = std::make_unique<StoreThread>(
      std::move(store), std::move(housekeeping),
      [self](const absl::Status& why) {
        self->Post([self, why] { self->broken_ = why; });
      });
  hub->thread_ = std::thread([self] { self->Loop(); });
  return hub;
}

absl::Status RequestHub::Recover(RequestStore& store) {
  PORTOLAN_ASSIGN_OR_RETURN(const int64_t last_seq, store.LastSeq());
  next_seq_ = last_seq + 1;
  PORTOLAN_ASSIGN_OR_RETURN(models_, store.Models());
  PORTOLAN_ASSIGN_OR_RETURN(const StoreTotals totals, store.Totals());
  totals_.set_accepted(static_cast<uint64_t>(totals.accepted));
  totals_.set_done(static_cast<uint64_t>(totals.done));
  totals_.set_failed(static_cast<uint64_t>(totals.failed));
  totals_.set_cancelled(static_cast<uint64_t>(totals.cancelled));
  totals_.set_tokens(static_cast<uint64_t>(totals.tokens));
  PORTOLAN_ASSIGN_OR_RETURN(std::vector<StoredRequest> unfinished,
                            store.Unfinished());
  const absl::Time now = clock_.Now();
  for (StoredRequest& stored : unfinished) {
    const int64_t seq = stored.queued.seq;
    PORTOLAN_ASSIGN_OR_RETURN(const std::vector<v1::TokenDelta> deltas,
                              store.Tokens(seq));
    Tracked& tracked = tracked_[seq];
    tracked.durable = true;
    for (const v1::TokenDelta& delta : deltas) {
      if (delta.offset() != tracked.log.size()) {
        return absl::DataLossError(absl::StrCat(
            "request ", stored.id, " in --data-dir lacks tokens from offset ",
            tracked.log.size(), " on"));
      }
      tracked.log.Append(delta);
    }
    tracked.taken = tracked.log.tokens();
    if (tracked.log.size() > 0) tracked.last_token = now;
    if (const auto model = FindModel(stored.queued.model);
        model.ok() && *model != nullptr) {
      stored.queued.label = (*model)->name();
    }
    queue_.Restore(stored.queued, now);
    tracked.stored = std::move(stored);
  }
  return absl::OkStatus();
}

RequestHub::~RequestHub() { Stop(); }

void RequestHub::EndStreams() {
  Post([this] {
    stopping_ = true;
    EndAll();
  });
}

void RequestHub::EndAll() {
  for (auto& [seq, tracked] : tracked_) {
    for (auto& reply : std::exchange(tracked.on_end, {})) reply(Stopping());
  }
  std::vector<Watcher*> watchers;
  for (auto& [stream, watcher] : watchers_) watchers.push_back(&watcher);
  for (Watcher* watcher : watchers) Pump(watcher);
  std::vector<Session*> sessions;
  for (auto& [stream, session] : sessions_) sessions.push_back(&session);
  for (Session* session : sessions) {
    if (!session->end) EndSession(*session, Stopping());
  }
}

absl::Status RequestHub::Stopping() const {
  return WithRetryInfo(absl::UnavailableError(
                           "the coordinator is shutting down; try again later "
                           "or elsewhere"),
                       kRetryAfterStop);
}

void RequestHub::Stop() {
  if (!thread_.joinable()) return;
  tasks_.Close();
  thread_.join();
  store_->Stop();
}

void RequestHub::Loop() {
  std::vector<absl::AnyInvocable<void()>> tasks;
  while (tasks_.Take(queue_.NextTick() - clock_.Now(), tasks)) {
    for (absl::AnyInvocable<void()>& task : tasks) task();
    if (!stopping_) Turn();
  }
}

// What follows from the events that came: expired timers, work for ranks with
// room, and everything that streams are to be told.
void RequestHub::Turn() {
  const absl::Time now = clock_.Now();
  queue_.Tick(now, actions_);
  queue_.Schedule(now, actions_);
  Apply(std::exchange(actions_, {}));
  for (auto& [stream, session] : sessions_) {
    if (session.acks.durable_size() == 0) continue;
    v1::CoordinatorMessage message;
    *message.mutable_ack() = std::move(session.acks);
    session.acks.Clear();
    Send(session, std::move(message));
  }
  telemetry_.Load(queue_.loads(), queue_.num_attached());
  CheckHealth();
  if (queue_.draining()) CheckDrained();
}

void RequestHub::Apply(QueueActions actions) {
  for (const QueueActions::Revocation& revoked : actions.revoke) {
    const Tracked* tracked = FindTracked(revoked.seq);
    if (tracked == nullptr) continue;
    SendCancel(revoked.session, tracked->stored.id, revoked.attempt);
  }
  for (const auto& assignment : actions.assign) SendAssign(assignment);
  for (const int64_t seq : actions.changed) SaveProgress(seq);
  for (QueueActions::Ending& ending : actions.ended) {
    v1::Finish finish;
    const bool cancelled = ending.state == RequestState::kCancelled;
    finish.set_reason(cancelled ? v1::FINISH_REASON_CANCELLED
                                : v1::FINISH_REASON_ERROR);
    if (!cancelled) {
      finish.mutable_error()->set_code(
          static_cast<uint32_t>(ending.status.code()));
      finish.mutable_error()->set_message(std::string(ending.status.message()));
    }
    End(ending.seq, ending.state, std::move(finish));
  }
  for (const uint64_t id : actions.wake) {
    if (Session* session = FindSession(id); session != nullptr) {
      v1::CoordinatorMessage message;
      message.mutable_wake();
      Send(*session, std::move(message));
    }
  }
  for (const uint64_t id : actions.lost_sessions) {
    if (Session* session = FindSession(id); session != nullptr) {
      EndSession(*session, absl::UnavailableError(
                               "replaced by another stream of this rank, or "
                               "silent for --rank-timeout"));
    }
  }
}

void RequestHub::Write(StoreThread::Durability durability, bool never_fails,
                       absl::AnyInvocable<absl::Status(RequestStore&)> work,
                       absl::AnyInvocable<void(absl::Status)> done) {
  ++writes_under_way_;
  store_->Post(
      {.durability = durability,
       .never_fails = never_fails,
       .work = std::move(work),
       .done = [this, done = std::move(done)](absl::Status status) mutable {
         Post([this, status = std::move(status),
               done = std::move(done)]() mutable {
           --writes_under_way_;
           done(std::move(status));
         });
       }});
}

void RequestHub::SaveProgress(int64_t seq) {
  const QueuedRequest* queued = queue_.Find(seq);
  Tracked* tracked = FindTracked(seq);
  if (queued == nullptr || tracked == nullptr) return;
  tracked->stored.queued = *queued;
  Write(
      StoreThread::Durability::kProcess, /*never_fails=*/true,
      [queued = *queued](RequestStore& store) { return store.Save(queued); },
      [](absl::Status) {});
}

void RequestHub::End(int64_t seq, RequestState state, v1::Finish finish) {
  Tracked* tracked = FindTracked(seq);
  if (tracked == nullptr || tracked->ending) return;
  tracked->ending = true;
  finish = Conclude(*tracked, std::move(finish));
  const absl::Time now = clock_.Now();
  Write(
      StoreThread::Durability::kProcess, /*never_fails=*/true,
      [seq, state, finish, now](RequestStore& store) {
        return store.Finish(seq, state, finish, now);
      },
      [this, seq, state, finish](absl::Status) {
        EndKept(seq, state, finish);
      });
}

// What the coordinator knows better than the rank.
v1::Finish RequestHub::Conclude(const Tracked& tracked,
                                v1::Finish finish) const {
  const size_t num_tokens = tracked.taken.size();
  v1::Usage& usage = *finish.mutable_usage();
  usage.set_completion_tokens(static_cast<uint32_t>(num_tokens));
  if (usage.prompt_tokens() == 0 && tracked.stored.request.has_tokens()) {
    usage.set_prompt_tokens(
        static_cast<uint32_t>(tracked.stored.queued.prompt_tokens));
  }
  if (num_tokens > 0) {
    const absl::Time first = tracked.stored.first_token;
    finish.set_ttft_s(absl::ToDoubleSeconds(first - tracked.stored.created));
    if (num_tokens > 1) {
      finish.set_tpot_s(absl::ToDoubleSeconds(tracked.last_token - first) /
                        static_cast<double>(num_tokens - 1));
    }
  }
  return finish;
}

void RequestHub::EndKept(int64_t seq, RequestState state,
                         const v1::Finish& finish) {
  Tracked* tracked = FindTracked(seq);
  if (tracked == nullptr) return;
  tracked->stored.queued.state = state;
  tracked->stored.finish = finish;
  tracked->stored.ended = clock_.Now();
  tracked->log.Finish(finish);
  telemetry_.Ended(tracked->stored);
  switch (state) {
    case RequestState::kDone:
      totals_.set_done(totals_.done() + 1);
      break;
    case RequestState::kCancelled:
      totals_.set_cancelled(totals_.cancelled() + 1);
      break;
    default:
      totals_.set_failed(totals_.failed() + 1);
  }
  for (auto& reply : std::exchange(tracked->on_end, {})) {
    reply(absl::OkStatus());
  }
  Publish(*tracked);
  ForgetIfDone(seq);
}

void RequestHub::Publish(Tracked& tracked) {
  // Pump() may end a watcher.
  const std::vector<Watcher*> watchers(tracked.watchers.begin(),
                                       tracked.watchers.end());
  for (Watcher* watcher : watchers) Pump(watcher);
}

void RequestHub::ForgetIfDone(int64_t seq) {
  const auto tracked = tracked_.find(seq);
  if (tracked == tracked_.end()) return;
  if (tracked->second.log.finished() && tracked->second.watchers.empty()) {
    tracked_.erase(tracked);
  }
}

RequestHub::Tracked* RequestHub::FindTracked(int64_t seq) {
  const auto tracked = tracked_.find(seq);
  return tracked == tracked_.end() ? nullptr : &tracked->second;
}

void RequestHub::Drain() {
  Post([this] {
    if (queue_.draining()) return;
    queue_.Drain();
    for (auto& [stream, session] : sessions_) {
      v1::CoordinatorMessage message;
      message.mutable_drain();
      if (session.registered) Send(session, std::move(message));
    }
  });
}

void RequestHub::WatchHealth(HealthWatch watch) {
  Post([this, watch = std::move(watch)]() mutable {
    watch_health_ = std::move(watch);
    watch_health_(health_, broken_);
  });
}

void RequestHub::CheckHealth() {
  const Health now = !broken_.ok()       ? Health::kBroken
                     : queue_.IsServed() ? Health::kServed
                                         : Health::kNoRank;
  if (std::exchange(health_, now) != now && watch_health_) {
    watch_health_(health_, broken_);
  }
}

void RequestHub::CheckDrained() {
  if (queue_.num_running() > 0 || writes_under_way_ > 0) return;
  for (const auto& [stream, watcher] : watchers_) {
    const Tracked* tracked = FindTracked(watcher.seq);
    if (tracked != nullptr && tracked->log.finished()) return;
  }
  MutexLock lock(mu_);
  drained_ = true;
  drained_changed_.NotifyAll();
}

bool RequestHub::WaitDrained(absl::Duration grace) {
  const absl::Time deadline = SteadyNow() + grace;
  MutexLock lock(mu_);
  while (!drained_) {
    const absl::Duration left = deadline - SteadyNow();
    if (left <= absl::ZeroDuration()) return false;
    drained_changed_.WaitFor(mu_, left);
  }
  return true;
}

void RequestHub::GetStats(Reply<v1::Stats> reply) {
  Post([this, reply = std::move(reply)]() mutable {
    const absl::Time now = clock_.Now();
    v1::Stats stats = totals_;
    stats.set_queued(static_cast<uint64_t>(queue_.num_queued()));
    stats.set_running(static_cast<uint64_t>(queue_.num_running()));
    stats.set_tokens_per_s(token_rate_.PerSecond(now));
    stats.set_draining(queue_.draining());
    stats.set_uptime_s(absl::ToDoubleSeconds(now - start_));
    stats.set_version(options_.version);
    for (const RequestQueue::RankView& view : queue_.Ranks(now)) {
      v1::RankStats& rank = *stats.add_ranks();
      rank.set_job(view.job);
      rank.set_rank(static_cast<uint32_t>(view.rank));
      rank.set_host(view.host);
      rank.set_model(view.model_name);
      rank.set_running(static_cast<uint32_t>(view.running));
      rank.set_free_sequences(static_cast<uint32_t>(view.free_sequences));
      rank.set_free_kv_tokens(static_cast<uint64_t>(view.free_kv_tokens));
      rank.set_tokens(static_cast<uint64_t>(view.tokens));
      rank.set_draining(view.draining);
      rank.set_silent_s(absl::ToDoubleSeconds(view.silent));
      const Session* session = FindSession(view.session);
      if (session != nullptr) AddFigures(session->metrics, rank);
    }
    for (const v1::ModelIdentity& model : models_) {
      v1::ModelStats& entry = *stats.add_models();
      entry.set_name(model.name());
      entry.set_fingerprint(model.fingerprint());
    }
    reply(std::move(stats));
  });
}

}  // namespace portolan
