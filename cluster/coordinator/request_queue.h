#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/coordinator/fair_queue.h"
#include "cluster/coordinator/service_rate.h"
#include "cluster/coordinator/start_times.h"

namespace portolan {

enum class RequestState : uint8_t {
  kQueued = 1,
  kRunning = 2,
  kDone = 3,
  kFailed = 4,
  kCancelled = 5,
};
constexpr bool HasEnded(RequestState state) {
  return state >= RequestState::kDone;
}
std::string_view RequestStateName(RequestState state);

struct QueueOptions {
  int64_t max_queued_requests = 10'000;
  int64_t max_queued_tokens = 50'000'000;  // prompt + max_tokens of all waiting
  // Of one client, waiting and running. 0: no quota.
  int64_t max_client_requests = 0;
  int64_t max_client_tokens = 0;
  // A Generate call waits so long that its first token can still come within
  // this time of its acceptance, as far as the starts of late tell; then it is
  // refused, at admission already if the estimate says so. One that finds room
  // at once is taken whatever its start may cost. Submitted requests wait as
  // long as needed.
  absl::Duration max_queue_wait = absl::InfiniteDuration();
  // How long requests wait for a rank (or a client) whose stream broke.
  absl::Duration reattach = absl::Seconds(10);
  // A rank that is silent for longer is taken for lost.
  absl::Duration rank_timeout = absl::Seconds(10);
  // A request in work at that many deaths of its rank fails.
  int max_attempts = 3;

  // Errors: kInvalidArgument naming the flag.
  absl::Status Validate() const;
};

// A request as scheduling sees it. Prompt and tokens live elsewhere.
struct QueuedRequest {
  int64_t seq = 0;  // unique, rising with the time of acceptance
  std::string client = {};
  // Outlives its call (Submit). Else its client's streams keep it alive.
  bool detached = false;
  std::string model = {};  // name or fingerprint; empty: any
  // The name of that model, however it was asked for: for flows and metrics.
  // Empty: `model`; where any would do, the rank that gets it tells which it
  // is. Not stored.
  std::string label = {};
  int64_t prompt_tokens = 1;
  int64_t max_tokens = 1;
  absl::Time deadline = absl::InfiniteFuture();

  // What a restart brings back; as is for a new request.
  RequestState state = RequestState::kQueued;
  int attempt = 0;
  int deaths = 0;
  int64_t num_tokens = 0;
  std::string numerics_id = {};  // of the tokens; empty while there are none
  std::string job = {};          // of the rank that runs it
  int rank = -1;
  uint64_t incarnation = 0;

  const std::string& model_label() const {
    return label.empty() ? model : label;
  }
  int64_t cost() const { return prompt_tokens + max_tokens; }
};

struct HeldRequest {
  int64_t seq = 0;
  int attempt = 0;
  int64_t held_from = 0;
};

struct RankRegistration {
  std::string job = {};
  int rank = 0;
  int world_size = 1;
  uint64_t incarnation = 0;
  std::string host = {};
  std::string model_name = {};
  std::string fingerprint = {};
  std::string numerics_id = {};
  int max_sequences = 1;
  int64_t kv_tokens = 0;  // 0: not a limit
  std::vector<HeldRequest> held = {};
};

struct RankRoom {
  int64_t free_sequences = 0;
  int64_t free_kv_tokens = 0;
  uint64_t last_assign_serial = 0;
  bool draining = false;
  double coldness = 0;
};

// Answer to one entry of RankRegistration.held.
struct ResumePoint {
  bool drop = true;
  int64_t next_offset = 0;
};

// What the owner of the queue has to do. Sessions are rank streams.
struct QueueActions {
  struct Assignment {
    uint64_t session = 0;
    uint64_t serial = 0;
    int64_t seq = 0;
    int attempt = 0;
    absl::Time start_by = absl::InfiniteFuture();
  };
  struct Revocation {
    uint64_t session = 0;
    int64_t seq = 0;
    int attempt = 0;
  };
  struct Ending {
    int64_t seq = 0;
    RequestState state = RequestState::kFailed;
    absl::Status status = {};
  };
  std::vector<Assignment> assign = {};
  std::vector<Revocation> revoke = {};
  std::vector<Ending> ended = {};     // and no longer in the queue
  std::vector<int64_t> changed = {};  // state, attempt or deaths: to be stored
  std::vector<uint64_t> lost_sessions = {};  // to be closed
  std::vector<uint64_t> wake = {};  // idle peers of a rank that got work
};

// Policy: the life of requests between acceptance and their end. Events in,
// actions out; reads no clock (`now` never falls), stores nothing.
//
//   Admit -> queued -> running (attempt n) -> ended
//              ^           | rank lost, reattach time over: deaths + 1
//              +-----------+ or given back by the rank
//
// A request runs on one rank at a time, under an attempt number that rises
// with every assignment; only that session and attempt may add tokens. An
// assignment of which the rank has not heard when its stream breaks is no death
// at first, for streams break; from the second one in a row on it is one, for
// the message itself may be what the rank cannot read. A request on its last
// attempt is kept apart from other suspects of the job, so that one poison
// request does not take its neighbours with it.
//
// Thread-compatible.
class RequestQueue {
 public:
  explicit RequestQueue(const QueueOptions& options) : options_(options) {}

  // -- Clients --

  struct Refusal {
    absl::Status status;  // OK: admitted
    absl::Duration retry_after;
  };
  // kResourceExhausted: a limit, a quota or the expected wait. kOutOfRange: it
  // alone is beyond a limit, whenever it comes.
  Refusal Admit(const QueuedRequest& request, absl::Time now);
  // Puts back a request that was admitted before a restart.
  void Restore(const QueuedRequest& request, absl::Time now);
  // Takes back an Admit() whose record could not be kept.
  void Withdraw(int64_t seq);
  // False if there is no such request (any more).
  bool Cancel(int64_t seq, absl::Status why, QueueActions& out);
  // From now on it outlives its call. Unknown ones are ignored.
  void Detach(int64_t seq, absl::Time deadline);
  // Streams that follow an undetached request. When the last one goes it is
  // cancelled: at once if `owner` (the Generate call itself), else after the
  // reattach time.
  void WatcherCame(int64_t seq);
  void WatcherWent(int64_t seq, bool owner, absl::Time now, QueueActions& out);

  // -- Ranks --

  // Returns one point for each held request. Requests of this rank that it no
  // longer holds are queued again.
  // Errors: kFailedPrecondition (differs from the job's other ranks, which the
  // message names), kAlreadyExists (another living process is this rank).
  absl::StatusOr<std::vector<ResumePoint>> Register(
      uint64_t session, const RankRegistration& registration, absl::Time now,
      QueueActions& out);
  void Heartbeat(uint64_t session, const RankRoom& room, absl::Time now);
  // Any other message.
  void Heard(uint64_t session, absl::Time now);
  // The rank said that it ends; otherwise only its stream broke.
  void Goodbye(uint64_t session, bool clean, QueueActions& out);
  void Disconnected(uint64_t session, absl::Time now);
  void Release(uint64_t session, int64_t seq, int attempt, QueueActions& out);

  struct TokenCheck {
    enum class Verdict {
      kTake,  // all but the first `skip`, which are known
      kGap,   // tokens from `expected` on are missing
      kDrop,  // not this rank's request (any more)
    };
    Verdict verdict = Verdict::kDrop;
    int64_t skip = 0;
    int64_t expected = 0;
  };
  // Tokens [offset, offset + count) came; the taken ones count from now on.
  TokenCheck TakeTokens(uint64_t session, int64_t seq, int attempt,
                        int64_t offset, int64_t count, absl::Time now);
  // The rank ended the request.
  void Finish(int64_t seq, absl::Time now);
  // The first token of a request came `time` after its assignment and is on
  // its way to the client.
  void FirstTokenSent(const QueuedRequest& request, absl::Duration time,
                      absl::Time now);

  // -- Time and work --

  // Deadlines, waits that are over, silent ranks.
  void Tick(absl::Time now, QueueActions& out);
  // Gives waiting requests to ranks with room. Nothing while draining.
  void Schedule(absl::Time now, QueueActions& out);
  // When Tick() has something to do if nothing else happens.
  absl::Time NextTick() const;
  void Drain() { draining_ = true; }
  bool draining() const { return draining_; }

  // -- Views --

  // nullptr if it has ended or never was. Valid until the next change.
  const QueuedRequest* Find(int64_t seq) const;
  int64_t num_queued() const;
  int64_t num_running() const { return num_running_; }
  struct ModelLoad {
    int64_t queued = 0;
    int64_t running = 0;
  };
  // By label of the model: of those that requests wait for or that ranks serve.
  const std::map<std::string, ModelLoad>& loads() const { return loads_; }
  int64_t num_attached() const {
    return static_cast<int64_t>(sessions_.size());
  }
  int64_t Position(int64_t seq) const;
  struct RankView {
    uint64_t session = 0;
    std::string job;
    int rank = 0;
    std::string host;
    std::string model_name;
    int64_t running = 0;
    int64_t free_sequences = 0;
    int64_t free_kv_tokens = 0;
    int64_t tokens = 0;
    bool draining = false;
    absl::Duration silent;
  };
  // Attached ranks, by job and rank.
  std::vector<RankView> Ranks(absl::Time now) const;
  // A rank is attached, or its stream broke less than the reattach time ago.
  bool IsServed() const;

 private:
  using RankKey = std::pair<std::string, int>;
  struct Entry {
    QueuedRequest request;
    std::string flow = {};  // that it waits in, or waited; empty: in none
    int num_watchers = 0;
    int num_unheard = 0;  // assignments in a row that broke the stream
    absl::Time alone_until = absl::InfiniteFuture();
    absl::Time queued_until = absl::InfiniteFuture();  // to its first token
    absl::Time assign_by = absl::InfiniteFuture();     // so as far as is known
    absl::Time timer = absl::InfiniteFuture();         // its place in timers_
  };
  struct RankState {
    RankRegistration info;
    bool registered = false;  // else only heard of, after a restart
    uint64_t session = 0;     // 0: stream broken
    absl::Time heard;
    absl::Time lost_at;
    RankRoom room;
    uint64_t serial = 0;
    std::map<int64_t, uint64_t> running;  // seq -> assign serial
    int64_t tokens = 0;
  };
  struct Room {
    int64_t sequences = 0;
    int64_t kv_tokens = 0;
  };
  struct Usage {
    int64_t requests = 0;
    int64_t tokens = 0;
  };
  enum class Fit { kNobody, kFull, kPlaced };

  Refusal CheckSize(const QueuedRequest& request) const;
  Refusal CheckLimits(const QueuedRequest& request, absl::Time now) const;
  Refusal CheckWait(const QueuedRequest& request, absl::Time now) const;
  void Insert(Entry entry);
  void Enqueue(Entry& entry);
  void CountLoad(const QueuedRequest& request, int64_t queued, int64_t running);
  void ForgetIdleLoad(const std::string& model);
  void SetTimer(Entry& entry);
  void Erase(std::map<int64_t, Entry>::iterator entry, bool refund);
  void End(int64_t seq, RequestState state, absl::Status status,
           QueueActions& out);
  void Expire(Entry& entry, absl::Time now, QueueActions& out);
  absl::Duration ExpectedStart(const QueuedRequest& request,
                               absl::Time now) const;
  void SetAssignBy(Entry& entry, absl::Time now) const;
  void BeginWaits(absl::Time now);
  void ShedLate(std::span<const int64_t> seqs, QueueActions& out);

  RankState* BySession(uint64_t session);
  absl::Status CheckPeers(const RankRegistration& registration,
                          absl::Time now) const;
  void BuryPredecessors(const RankRegistration& registration,
                        QueueActions& out);
  ResumePoint Resume(RankState& rank, const HeldRequest& held);
  std::set<int64_t> TakeUnheard(RankState& rank);
  void RequeueMissing(RankState& rank, std::span<const HeldRequest> held,
                      const std::set<int64_t>& unheard, QueueActions& out);
  void Requeue(int64_t seq, bool died, QueueActions& out);
  void Bury(std::map<RankKey, RankState>::iterator rank, bool died,
            QueueActions& out);

  static bool Serves(const RankState& rank, const QueuedRequest& request);
  Room RoomOf(const RankState& rank) const;
  bool IsSuspect(const QueuedRequest& request) const;
  bool JobHasSuspect(const std::string& job) const;
  // Some rank could take another sequence.
  bool AnySlot() const;
  Fit Place(Entry& entry, QueueActions& out);
  void Assign(Entry& entry, RankState& rank, QueueActions& out);
  void WakePeers(const RankState& rank, QueueActions& out) const;

  QueueOptions options_;
  bool draining_ = false;
  std::map<int64_t, Entry> entries_;
  FairQueue fresh_;               // never started, in fair order
  std::set<int64_t> resumed_;     // started before: they go first
  std::vector<int64_t> arrived_;  // live ones that no rank was asked for yet
  std::set<std::pair<absl::Time, int64_t>> timers_;
  std::map<std::string, Usage, std::less<>> usage_;
  std::map<RankKey, RankState> ranks_;
  std::map<uint64_t, RankKey> sessions_;
  int64_t num_running_ = 0;
  std::map<std::string, ModelLoad> loads_;
  ServiceRate rate_;
  std::map<std::string, StartTimes> start_times_;  // by label of the model
};

}  // namespace portolan
