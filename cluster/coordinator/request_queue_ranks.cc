// The half of RequestQueue that deals with ranks: who is there, what each of
// them holds, and who gets the next request.
#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/coordinator/request_queue.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

// A rank that was heard within this time is alive for sure: another process
// that claims its place is a mistake in somebody's configuration.
constexpr absl::Duration kSurelyAlive = absl::Milliseconds(2500);

std::string Describe(const RankRegistration& rank) {
  return absl::StrCat("rank ", rank.rank, " of job '", rank.job, "' on ",
                      rank.host);
}

}  // namespace

RequestQueue::RankState* RequestQueue::BySession(uint64_t session) {
  const auto key = sessions_.find(session);
  if (key == sessions_.end()) return nullptr;
  return &ranks_.at(key->second);
}

absl::StatusOr<std::vector<ResumePoint>> RequestQueue::Register(
    uint64_t session, const RankRegistration& registration, absl::Time now,
    QueueActions& out) {
  // One that lost its stream meanwhile may still bring what it runs to an end.
  if (draining_ && registration.held.empty()) {
    return absl::UnavailableError("the coordinator is shutting down");
  }
  if (absl::Status peers = CheckPeers(registration, now); !peers.ok()) {
    return peers;
  }
  BuryPredecessors(registration, out);
  RankState& rank = ranks_[{registration.job, registration.rank}];
  if (rank.session != 0) {
    out.lost_sessions.push_back(rank.session);
    sessions_.erase(rank.session);
  }
  const std::string before = rank.info.model_name;
  rank.info = registration;
  rank.info.held.clear();
  const std::set<int64_t> unheard = TakeUnheard(rank);
  rank.registered = true;
  rank.session = session;
  rank.heard = now;
  rank.serial = 0;
  rank.room = {.free_sequences = registration.max_sequences,
               .free_kv_tokens = registration.kv_tokens};
  sessions_[session] = {registration.job, registration.rank};
  loads_.try_emplace(registration.model_name);
  ForgetIdleLoad(before);

  std::vector<ResumePoint> points;
  for (const HeldRequest& held : registration.held) {
    points.push_back(Resume(rank, held));
  }
  RequeueMissing(rank, registration.held, unheard, out);
  return points;
}

absl::Status RequestQueue::CheckPeers(const RankRegistration& registration,
                                      absl::Time now) const {
  for (const auto& [key, peer] : ranks_) {
    if (key.first != registration.job || peer.session == 0) continue;
    const RankRegistration& other = peer.info;
    if (key.second == registration.rank) {
      if (other.incarnation != registration.incarnation &&
          now < peer.heard + kSurelyAlive) {
        return absl::AlreadyExistsError(
            absl::StrCat(Describe(other),
                         " is attached and alive; give the second job "
                         "another --job name"));
      }
      continue;
    }
    const auto differs = [&](const char* what, const auto& mine,
                             const auto& theirs) {
      return absl::FailedPreconditionError(
          absl::StrCat(Describe(registration), " has ", what, " ", mine, ", ",
                       Describe(other), " has ", theirs));
    };
    if (other.world_size != registration.world_size) {
      return differs("world size", registration.world_size, other.world_size);
    }
    if (other.fingerprint != registration.fingerprint) {
      return differs("model", registration.fingerprint, other.fingerprint);
    }
    if (other.numerics_id != registration.numerics_id) {
      return differs("numerics id", registration.numerics_id,
                     other.numerics_id);
    }
  }
  return absl::OkStatus();
}

// Ranks of a job live and die together: a new process in the place of an old
// one means that peers whose streams broke will not come back either.
void RequestQueue::BuryPredecessors(const RankRegistration& registration,
                                    QueueActions& out) {
  const auto own = ranks_.find({registration.job, registration.rank});
  if (own == ranks_.end() ||
      own->second.info.incarnation == registration.incarnation) {
    return;
  }
  if (own->second.session != 0) {
    out.lost_sessions.push_back(own->second.session);
  }
  Bury(own, /*died=*/true, out);
  for (auto it = ranks_.begin(); it != ranks_.end();) {
    const auto rank = it++;
    if (rank->first.first == registration.job && rank->second.session == 0) {
      Bury(rank, /*died=*/true, out);
    }
  }
}

ResumePoint RequestQueue::Resume(RankState& rank, const HeldRequest& held) {
  const auto entry = entries_.find(held.seq);
  if (entry == entries_.end() || !rank.running.contains(held.seq)) return {};
  const QueuedRequest& request = entry->second.request;
  // After a power cut fewer tokens may be on disk than were acknowledged.
  if (request.attempt != held.attempt || held.held_from > request.num_tokens) {
    return {};
  }
  return {.drop = false, .next_offset = request.num_tokens};
}

// What the rank's last stream was given and no heartbeat had seen. Serials
// begin anew.
std::set<int64_t> RequestQueue::TakeUnheard(RankState& rank) {
  std::set<int64_t> unheard;
  for (auto& [seq, serial] : rank.running) {
    if (serial > rank.room.last_assign_serial) unheard.insert(seq);
    serial = 0;
  }
  return unheard;
}

void RequestQueue::RequeueMissing(RankState& rank,
                                  std::span<const HeldRequest> held,
                                  const std::set<int64_t>& unheard,
                                  QueueActions& out) {
  std::vector<int64_t> missing;
  for (const auto& entry : rank.running) {
    const int64_t seq = entry.first;
    const auto same = [&](const HeldRequest& h) {
      return h.seq == seq && !Resume(rank, h).drop;
    };
    if (std::none_of(held.begin(), held.end(), same)) missing.push_back(seq);
  }
  for (const int64_t seq : missing) {
    const bool again =
        unheard.contains(seq) && entries_.at(seq).num_unheard++ > 0;
    Requeue(seq, /*died=*/again, out);
  }
}

void RequestQueue::Requeue(int64_t seq, bool died, QueueActions& out) {
  Entry& entry = entries_.at(seq);
  QueuedRequest& request = entry.request;
  const auto rank = ranks_.find({request.job, request.rank});
  if (rank != ranks_.end()) rank->second.running.erase(seq);
  if (died && ++request.deaths >= options_.max_attempts) {
    absl::Status status = absl::InternalError(absl::StrCat(
        "in work at ", request.deaths, " deaths of its rank (last: rank ",
        request.rank, " of job '", request.job,
        "'); taken for poison and not tried again (--max-attempts)"));
    End(seq, RequestState::kFailed, std::move(status), out);
    return;
  }
  --num_running_;
  CountLoad(request, 0, -1);
  request.state = RequestState::kQueued;
  request.job.clear();
  request.rank = -1;
  request.incarnation = 0;
  if (request.num_tokens == 0) request.numerics_id.clear();
  Enqueue(entry);
  out.changed.push_back(seq);
}

void RequestQueue::Bury(std::map<RankKey, RankState>::iterator rank, bool died,
                        QueueActions& out) {
  std::vector<int64_t> orphans;
  for (const auto& [seq, serial] : rank->second.running) orphans.push_back(seq);
  sessions_.erase(rank->second.session);
  rank->second.session = 0;
  for (const int64_t seq : orphans) Requeue(seq, died, out);
  const std::string model = rank->second.info.model_name;
  ranks_.erase(rank);
  ForgetIdleLoad(model);
}

void RequestQueue::Heartbeat(uint64_t session, const RankRoom& room,
                             absl::Time now) {
  RankState* rank = BySession(session);
  if (rank == nullptr) return;
  rank->heard = now;
  rank->room = room;
}

void RequestQueue::Heard(uint64_t session, absl::Time now) {
  RankState* rank = BySession(session);
  if (rank != nullptr) rank->heard = now;
}

void RequestQueue::Goodbye(uint64_t session, bool clean, QueueActions& out) {
  const auto key = sessions_.find(session);
  if (key == sessions_.end()) return;
  Bury(ranks_.find(key->second), !clean, out);
}

void RequestQueue::Disconnected(uint64_t session, absl::Time now) {
  RankState* rank = BySession(session);
  if (rank == nullptr) return;
  rank->session = 0;
  rank->lost_at = now;
  sessions_.erase(session);
}

void RequestQueue::Release(uint64_t session, int64_t seq, int attempt,
                           QueueActions& out) {
  RankState* rank = BySession(session);
  if (rank == nullptr || !rank->running.contains(seq)) return;
  if (entries_.at(seq).request.attempt != attempt) return;
  Requeue(seq, /*died=*/false, out);
}

RequestQueue::TokenCheck RequestQueue::TakeTokens(uint64_t session, int64_t seq,
                                                  int attempt, int64_t offset,
                                                  int64_t count,
                                                  absl::Time now) {
  using Verdict = TokenCheck::Verdict;
  RankState* rank = BySession(session);
  if (rank == nullptr) return {};
  rank->heard = now;
  if (!rank->running.contains(seq)) return {};
  Entry& entry = entries_.at(seq);
  QueuedRequest& request = entry.request;
  if (request.attempt != attempt) return {};
  if (offset > request.num_tokens) {
    return {.verdict = Verdict::kGap, .expected = request.num_tokens};
  }
  entry.num_unheard = 0;
  const int64_t skip = std::min(request.num_tokens - offset, count);
  request.num_tokens += count - skip;
  rank->tokens += count - skip;
  return {.verdict = Verdict::kTake, .skip = skip};
}

bool RequestQueue::Serves(const RankState& rank, const QueuedRequest& request) {
  const RankRegistration& info = rank.info;
  if (rank.session == 0 || rank.room.draining) return false;
  if (!request.numerics_id.empty() && request.numerics_id != info.numerics_id) {
    return false;
  }
  return request.model.empty() || request.model == info.model_name ||
         request.model == info.fingerprint;
}

// The rank's own figures, less what was assigned since it made them.
RequestQueue::Room RequestQueue::RoomOf(const RankState& rank) const {
  Room room{.sequences = rank.room.free_sequences,
            .kv_tokens = rank.room.free_kv_tokens};
  for (const auto& [seq, serial] : rank.running) {
    if (serial <= rank.room.last_assign_serial) continue;
    room.sequences -= 1;
    room.kv_tokens -= entries_.at(seq).request.prompt_tokens;
  }
  const int64_t slots =
      rank.info.max_sequences - static_cast<int64_t>(rank.running.size());
  room.sequences = std::min(room.sequences, slots);
  return room;
}

bool RequestQueue::IsSuspect(const QueuedRequest& request) const {
  return request.deaths > 0 && request.deaths + 1 >= options_.max_attempts;
}

bool RequestQueue::JobHasSuspect(const std::string& job) const {
  for (const auto& [key, rank] : ranks_) {
    if (key.first != job) continue;
    for (const auto& [seq, serial] : rank.running) {
      if (IsSuspect(entries_.at(seq).request)) return true;
    }
  }
  return false;
}

bool RequestQueue::AnySlot() const {
  return std::ranges::any_of(ranks_, [this](const auto& entry) {
    const RankState& rank = entry.second;
    return rank.session != 0 && RoomOf(rank).sequences > 0;
  });
}

RequestQueue::Fit RequestQueue::Place(Entry& entry, QueueActions& out) {
  const QueuedRequest& request = entry.request;
  RankState* best = nullptr;
  Room best_room;
  bool known = false;
  for (auto& [key, rank] : ranks_) {
    if (!Serves(rank, request)) continue;
    known = true;
    if (IsSuspect(request) && JobHasSuspect(key.first)) continue;
    const Room room = RoomOf(rank);
    const bool fits = rank.info.kv_tokens == 0 || rank.running.empty() ||
                      room.kv_tokens >= request.prompt_tokens;
    if (room.sequences < 1 || !fits) continue;
    const auto better = [&, &rank = rank] {
      if (room.sequences != best_room.sequences) {
        return room.sequences > best_room.sequences;
      }
      if (rank.room.coldness != best->room.coldness) {
        return rank.room.coldness < best->room.coldness;
      }
      return room.kv_tokens > best_room.kv_tokens;
    };
    if (best == nullptr || better()) {
      best = &rank;
      best_room = room;
    }
  }
  if (best == nullptr) return known ? Fit::kFull : Fit::kNobody;
  Assign(entry, *best, out);
  return Fit::kPlaced;
}

void RequestQueue::Assign(Entry& entry, RankState& rank, QueueActions& out) {
  QueuedRequest& request = entry.request;
  WakePeers(rank, out);
  request.state = RequestState::kRunning;
  request.attempt += 1;
  request.job = rank.info.job;
  request.rank = rank.info.rank;
  request.incarnation = rank.info.incarnation;
  request.numerics_id = rank.info.numerics_id;
  rank.running.emplace(request.seq, ++rank.serial);
  ++num_running_;
  CountLoad(request, -1, 0);
  if (request.label.empty()) request.label = rank.info.model_name;
  CountLoad(request, 0, 1);
  SetTimer(entry);
  // What has waited here waits on there, for a slot.
  out.assign.push_back(
      {rank.session, rank.serial, request.seq, request.attempt,
       request.attempt == 1 ? entry.queued_until : absl::InfiniteFuture()});
  out.changed.push_back(request.seq);
}

// Ranks of an idle job sleep, and every step needs all of them.
void RequestQueue::WakePeers(const RankState& rank, QueueActions& out) const {
  std::vector<uint64_t> peers;
  for (const auto& [key, peer] : ranks_) {
    if (key.first != rank.info.job) continue;
    if (!peer.running.empty()) return;
    if (peer.session != 0 && peer.session != rank.session) {
      peers.push_back(peer.session);
    }
  }
  out.wake.insert(out.wake.end(), peers.begin(), peers.end());
}

void RequestQueue::Schedule(absl::Time now, QueueActions& out) {
  if (draining_) return BeginWaits(now);
  for (auto it = resumed_.begin(); it != resumed_.end();) {
    const int64_t seq = *it;
    const bool placed = Place(entries_.at(seq), out) == Fit::kPlaced;
    it = placed ? resumed_.erase(it) : std::next(it);
  }
  // A full model holds back its own requests only.
  std::set<std::string> full;
  std::vector<int64_t> late;
  bool any_slot = AnySlot();
  fresh_.Serve([&](const FairQueue::Item& item) {
    // Else every turn would ask every flow of an overloaded service in vain.
    if (!any_slot) return FairQueue::Verdict::kStop;
    Entry& entry = entries_.at(item.seq);
    if (full.contains(entry.request.model))
      return FairQueue::Verdict::kSkipFlow;
    // One that is offered for the first time has not waited.
    if (entry.assign_by < absl::InfiniteFuture()) SetAssignBy(entry, now);
    if (entry.assign_by <= now) {
      late.push_back(item.seq);
      return FairQueue::Verdict::kDrop;
    }
    switch (Place(entry, out)) {
      case Fit::kPlaced:
        any_slot = AnySlot();
        return FairQueue::Verdict::kTake;
      case Fit::kFull:
        full.insert(entry.request.model);
        break;
      case Fit::kNobody:
        break;
    }
    return FairQueue::Verdict::kSkipFlow;
  });
  ShedLate(late, out);
  BeginWaits(now);
}

// Of those that came and found no room.
void RequestQueue::BeginWaits(absl::Time now) {
  for (const int64_t seq : std::exchange(arrived_, {})) {
    const auto entry = entries_.find(seq);
    if (entry == entries_.end() || entry->second.request.attempt > 0) continue;
    SetAssignBy(entry->second, now);
    SetTimer(entry->second);
  }
}

std::vector<RequestQueue::RankView> RequestQueue::Ranks(absl::Time now) const {
  std::vector<RankView> views;
  for (const auto& [key, rank] : ranks_) {
    if (rank.session == 0) continue;
    const Room room = RoomOf(rank);
    views.push_back({.session = rank.session,
                     .job = key.first,
                     .rank = key.second,
                     .host = rank.info.host,
                     .model_name = rank.info.model_name,
                     .running = static_cast<int64_t>(rank.running.size()),
                     .free_sequences = std::max<int64_t>(0, room.sequences),
                     .free_kv_tokens = std::max<int64_t>(0, room.kv_tokens),
                     .tokens = rank.tokens,
                     .draining = rank.room.draining,
                     .silent = now - rank.heard});
  }
  return views;
}

bool RequestQueue::IsServed() const {
  return std::ranges::any_of(
      ranks_, [](const auto& rank) { return rank.second.registered; });
}

}  // namespace portolan
