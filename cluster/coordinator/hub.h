#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/coordinator/mailbox.h"
#include "cluster/coordinator/request_queue.h"
#include "cluster/coordinator/request_store.h"
#include "cluster/coordinator/service_clock.h"
#include "cluster/coordinator/store_thread.h"
#include "cluster/coordinator/streams.h"
#include "cluster/coordinator/telemetry.h"
#include "cluster/coordinator/token_log.h"
#include "cluster/coordinator/validation.h"
#include "runtime/base/mutex.h"

namespace portolan {

struct HubOptions {
  QueueOptions queue = {};
  RequestLimits limits = {};
  Retention retention = {};
  absl::Duration heartbeat = absl::Seconds(1);
  int64_t max_held_tokens = 1 << 16;
  // Calls of Generate and Watch that one client may have open; 0: no limit.
  int64_t max_client_streams = 1000;
  std::string version = {};
};

// The coordinator behind its services: one thread owns the queue, the logs of
// requests and the streams of clients and ranks, and carries out what the queue
// decides; the store's thread keeps all of it. Tokens reach the store before
// they reach a client, and only then are they acknowledged to the rank.
//
//   client call -> Submit/Generate -> queue -> store -> answer
//   rank tokens -> RankSent -> queue (next offset of this attempt?) -> store
//               -> log -> each watcher at its own pace; Ack to the rank
//
// Thread-safe: every public function leaves a task for the hub's thread and
// returns; replies come on that thread or the store's.
class RequestHub {
 public:
  template <typename T>
  using Reply = absl::AnyInvocable<void(absl::StatusOr<T>)>;

  // Takes up what the store holds. `telemetry` must outlive the hub.
  // Errors: of the store.
  static absl::StatusOr<std::unique_ptr<RequestHub>> Start(
      const HubOptions& options, absl::Time wall_now,
      std::unique_ptr<RequestStore> store, Telemetry& telemetry);
  // As Stop().
  ~RequestHub();

  // -- Clients. Requests are validated here. --
  void Submit(Caller caller, v1::GenerateRequest request,
              Reply<v1::SubmitResponse> reply);
  void Generate(Caller caller, v1::GenerateRequest request,
                std::shared_ptr<ClientStream> stream);
  void Watch(Caller caller, v1::WatchRequest request,
             std::shared_ptr<ClientStream> stream);
  void Get(Caller caller, v1::GetRequest request, Reply<v1::RequestInfo> reply);
  void List(Caller caller, v1::ListRequest request,
            Reply<v1::ListResponse> reply);
  void Cancel(Caller caller, v1::CancelRequest request,
              Reply<v1::RequestInfo> reply);
  void GetStats(Reply<v1::Stats> reply);
  // The message was sent; false: the stream is broken.
  void ClientWritten(const ClientStream* stream, bool ok);
  // The client went, or its call's deadline passed.
  void ClientGone(const ClientStream* stream);

  // -- Ranks. The first message must be Register. --
  void RankCame(std::shared_ptr<RankStream> stream);
  void RankSent(const RankStream* stream, v1::RankMessage message);
  void RankWritten(const RankStream* stream, bool ok);
  // Nothing more will come from it, and why.
  void RankGone(const RankStream* stream,
                absl::Status why = absl::CancelledError("the rank went away"));

  enum class Health : uint8_t {
    kNoRank,  // none is attached, nor was within the reattach time
    kServed,
    kBroken,  // the database takes no writes, for good (StoreThread)
  };
  // Called on the hub's thread with the present state and at each change;
  // `why` of kBroken. One watch only.
  using HealthWatch = absl::AnyInvocable<void(Health, const absl::Status& why)>;
  void WatchHealth(HealthWatch watch);

  // No new requests are accepted or given to ranks.
  void Drain();
  // Waits until what runs has ended and is kept, and its clients have it; at
  // most `grace`. False: something is still running.
  bool WaitDrained(absl::Duration grace) ABSL_LOCKS_EXCLUDED(mu_);
  // Ends all streams, and those that come later, with UNAVAILABLE. Requests go
  // on after a restart.
  void EndStreams();
  // Ends the threads. No stream may be open any more.
  void Stop();

 private:
  struct Watcher {
    // Rises and is never used again: what comes back from the store finds the
    // watcher by it, for the next stream may have the address of one that went.
    uint64_t id = 0;
    std::shared_ptr<ClientStream> stream;
    std::string client;
    int64_t seq = 0;  // 0: not known yet
    int64_t offset = 0;
    bool owner = false;  // the Generate call itself
    bool greeted = false;
    bool writing = false;
    std::optional<absl::Status> end;  // what is left to say
  };
  // A request that has not ended, or has watchers.
  struct Tracked {
    StoredRequest stored;
    bool durable = false;        // accepted for good
    bool must_detach = false;    // a Submit took it up; not on disk yet
    bool ending = false;         // its end is on the way to the store
    std::vector<int32_t> taken;  // tokens taken from ranks
    TokenLog log;                // those that are kept
    absl::Time last_token = absl::InfiniteFuture();
    std::set<Watcher*> watchers;
    // OK: it has ended and that is kept. Else the coordinator stops.
    std::vector<absl::AnyInvocable<void(absl::Status)>> on_end;
  };
  struct Session {
    uint64_t id = 0;
    std::shared_ptr<RankStream> stream;
    bool registered = false;
    RankIdentity identity;
    v1::SamplingParams defaults;
    v1::RankMetrics metrics;  // as last told
    std::deque<v1::CoordinatorMessage> outgoing;
    bool writing = false;
    std::optional<absl::Status> end;
    v1::Ack acks;  // of this turn
  };
  // What one message of a rank changed, on its way through the store.
  struct TokenWork {
    uint64_t session = 0;
    struct Item {
      int64_t seq = 0;
      v1::TokenDelta delta = {};
      RequestState state = RequestState::kRunning;
      std::optional<v1::Finish> finish = {};  // if it ended, with `state`
    };
    std::vector<Item> items;
    absl::Time now;
  };

  RequestHub(const HubOptions& options, absl::Time wall_now,
             absl::Time not_before, Telemetry& telemetry);
  absl::Status Recover(RequestStore& store);
  void Post(absl::AnyInvocable<void()> task) { tasks_.Post(std::move(task)); }
  void Loop();
  void Turn();
  void Apply(QueueActions actions);
  // `done` runs on the hub's thread.
  void Write(StoreThread::Durability durability, bool never_fails,
             absl::AnyInvocable<absl::Status(RequestStore&)> work,
             absl::AnyInvocable<void(absl::Status)> done);
  void CheckHealth();
  void CheckDrained() ABSL_LOCKS_EXCLUDED(mu_);
  void EndAll();
  absl::Status Stopping() const;

  // Admission.
  using Accepted =
      absl::AnyInvocable<void(absl::StatusOr<int64_t> seq, bool existed)>;
  void Accept(const Caller& caller, v1::GenerateRequest request, bool detached,
              Watcher* watcher, Accepted reply);
  void AcceptNew(const Caller& caller, v1::GenerateRequest request,
                 bool detached, Watcher* watcher, Accepted reply);
  void InsertDone(int64_t seq, absl::Status status,
                  std::optional<StoredRequest> existing, Accepted reply);
  void Reject(int64_t seq, const absl::Status& status);
  // A call came for a request that an earlier one brought; `reply` gets it.
  void TakeUp(const Caller& caller, const std::string& id, bool detached,
              Accepted reply);
  // Counts the refusal; returns `status`.
  absl::Status Refused(const Caller& caller, const std::string& model,
                       absl::Status status);
  absl::StatusOr<StoredRequest> Compose(const Caller& caller,
                                        v1::GenerateRequest request,
                                        bool detached);
  absl::StatusOr<const v1::ModelIdentity*> FindOnlyModel() const;
  absl::StatusOr<const v1::ModelIdentity*> FindModel(
      const std::string& name) const;

  // Watchers.
  Watcher* AddWatcher(std::shared_ptr<ClientStream> stream,
                      const std::string& client, bool owner);
  // Errors: kResourceExhausted if its client has too many, this one included.
  absl::Status CheckStreams(const Watcher& watcher) const;
  Watcher* AddWatcher(std::shared_ptr<ClientStream> stream, bool owner);
  // nullptr: it went.
  Watcher* FindWatcher(uint64_t id);
  void Follow(Watcher* watcher, int64_t seq, const Caller& caller,
              std::string id);
  void AttachWatcher(Watcher* watcher, Tracked& tracked);
  void Pump(Watcher* watcher);
  void EndWatcher(Watcher* watcher, absl::Status status);
  void DropWatcher(Watcher* watcher);

  // Requests.
  Tracked* FindTracked(int64_t seq);
  // nullptr: not live. Checks id and owner.
  Tracked* FindLive(const Caller& caller, std::string_view id);
  // Gives the request, from the store if need be, to `use` on the hub's thread.
  void Load(const Caller& caller, const std::string& id,
            absl::AnyInvocable<void(absl::StatusOr<Tracked*>)> use);
  v1::RequestInfo Describe(const Tracked& tracked, bool with_output) const;
  void End(int64_t seq, RequestState state, v1::Finish finish);
  v1::Finish Conclude(const Tracked& tracked, v1::Finish finish) const;
  void EndKept(int64_t seq, RequestState state, const v1::Finish& finish);
  void Publish(Tracked& tracked);
  void ForgetIfDone(int64_t seq);
  void SaveProgress(int64_t seq);
  void SaveFirstAssignment(Tracked& tracked, const Session& session);

  // Ranks.
  Session* FindSession(const RankStream* stream);
  Session* FindSession(uint64_t id);
  void Register(Session& session, const v1::Register& message);
  void Handle(Session& session, const v1::RankMessage& message);
  void TakeTokens(Session& session, const v1::TokenBatch& batch);
  void TakeDelta(Session& session, const v1::TokenDelta& delta,
                 TokenWork& work);
  void TokensKept(const TokenWork& work);
  void NoteStart(const StoredRequest& stored);
  void SendAssign(const QueueActions::Assignment& assignment);
  void SendCancel(uint64_t session, std::string_view id, int attempt);
  void Send(Session& session, v1::CoordinatorMessage message);
  void PumpRank(Session& session);
  void EndSession(Session& session, absl::Status status);
  void RememberModel(const v1::ModelIdentity& model);
  int64_t LiveSeq(std::string_view id) const;

  const HubOptions options_;
  const ServiceClock clock_;
  Telemetry& telemetry_;

  // On the hub's thread only.
  RequestQueue queue_;
  int64_t next_seq_ = 1;
  uint64_t next_session_ = 1;
  uint64_t next_watcher_ = 1;
  std::mt19937_64 random_;
  std::unordered_map<int64_t, Tracked> tracked_;
  std::unordered_map<const ClientStream*, Watcher> watchers_;
  std::unordered_map<std::string, int64_t> num_streams_;  // by client
  std::unordered_map<uint64_t, Watcher*> watchers_by_id_;
  std::unordered_map<const RankStream*, Session> sessions_;
  std::unordered_map<uint64_t, Session*> sessions_by_id_;
  std::vector<v1::ModelIdentity> models_;
  QueueActions actions_;  // of this turn
  int64_t writes_under_way_ = 0;
  v1::Stats totals_;
  ServiceRate token_rate_;
  HealthWatch watch_health_;
  Health health_ = Health::kNoRank;  // as `watch_health_` was told
  absl::Status broken_;
  bool stopping_ = false;
  const absl::Time start_;

  Mutex mu_;
  CondVar drained_changed_;
  bool drained_ ABSL_GUARDED_BY(mu_) = false;

  Mailbox<absl::AnyInvocable<void()>> tasks_;
  std::unique_ptr<StoreThread> store_;
  std::thread thread_;
};

}  // namespace portolan
