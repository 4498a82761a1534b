#include "cluster/coordinator/request_queue.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

// A client's live calls and its submitted ones take turns, and a model without
// a job holds up nothing else.
std::string FlowOf(const QueuedRequest& request) {
  return absl::StrCat(request.detached ? "submitted/" : "live/",
                      request.model_label(), "/", request.client);
}

RequestQueue::Refusal Refuse(const std::string& why,
                             absl::Duration retry_after) {
  return {absl::ResourceExhaustedError(why), retry_after};
}

constexpr absl::Duration kRetrySoon = absl::Seconds(1);

}  // namespace

std::string_view RequestStateName(RequestState state) {
  switch (state) {
    case RequestState::kQueued:
      return "queued";
    case RequestState::kRunning:
      return "running";
    case RequestState::kDone:
      return "done";
    case RequestState::kFailed:
      return "failed";
    case RequestState::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

absl::Status QueueOptions::Validate() const {
  if (max_queued_requests < 1) {
    return absl::InvalidArgumentError("--max-queued must be at least 1");
  }
  if (max_queued_tokens < 1) {
    return absl::InvalidArgumentError("--max-queued-tokens must be at least 1");
  }
  if (max_client_requests < 0 || max_client_tokens < 0) {
    return absl::InvalidArgumentError(
        "--client-requests and --client-tokens must not be negative (0: no "
        "quota)");
  }
  if (max_attempts < 1) {
    return absl::InvalidArgumentError("--max-attempts must be at least 1");
  }
  if (reattach < absl::ZeroDuration() ||
      max_queue_wait <= absl::ZeroDuration() ||
      rank_timeout <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        "--reattach must not be negative, --max-queue-wait and --rank-timeout "
        "must be positive");
  }
  return absl::OkStatus();
}

RequestQueue::Refusal RequestQueue::Admit(const QueuedRequest& request,
                                          absl::Time now) {
  if (Refusal refusal = CheckLimits(request, now); !refusal.status.ok()) {
    return refusal;
  }
  if (Refusal refusal = CheckWait(request, now); !refusal.status.ok()) {
    return refusal;
  }
  Entry entry{.request = request};
  entry.request.state = RequestState::kQueued;
  if (!request.detached && options_.max_queue_wait < absl::InfiniteDuration()) {
    entry.queued_until = now + options_.max_queue_wait;
    arrived_.push_back(request.seq);
  }
  Insert(std::move(entry));
  return {};
}

RequestQueue::Refusal RequestQueue::CheckSize(
    const QueuedRequest& request) const {
  const auto beyond = [&](int64_t limit, const char* flag) {
    return Refusal{absl::OutOfRangeError(absl::StrCat(
                       "params.max_tokens is ", request.max_tokens,
                       "; with the prompt of about ", request.prompt_tokens,
                       " tokens that is more than ", flag, " ", limit,
                       " lets in at any time")),
                   absl::ZeroDuration()};
  };
  if (request.cost() > options_.max_queued_tokens) {
    return beyond(options_.max_queued_tokens, "--max-queued-tokens");
  }
  if (options_.max_client_tokens > 0 &&
      request.cost() > options_.max_client_tokens) {
    return beyond(options_.max_client_tokens, "--client-tokens");
  }
  return {};
}

RequestQueue::Refusal RequestQueue::CheckLimits(const QueuedRequest& request,
                                                absl::Time now) const {
  if (Refusal refusal = CheckSize(request); !refusal.status.ok()) {
    return refusal;
  }
  if (num_queued() >= options_.max_queued_requests ||
      fresh_.total_cost() + request.cost() > options_.max_queued_tokens) {
    const double rate = rate_.PerSecond(now);
    const absl::Duration wait =
        rate > 0 ? absl::Seconds(static_cast<double>(request.cost()) / rate)
                 : kRetrySoon;
    return Refuse(
        absl::StrCat("the queue is full: ", num_queued(), " requests with ",
                     fresh_.total_cost(), " tokens wait (--max-queued ",
                     options_.max_queued_requests, ", --max-queued-tokens ",
                     options_.max_queued_tokens, "); try again later"),
        std::clamp(wait, kRetrySoon, absl::Minutes(1)));
  }
  const auto found = usage_.find(request.client);
  const Usage used = found == usage_.end() ? Usage{} : found->second;
  if (options_.max_client_requests > 0 &&
      used.requests >= options_.max_client_requests) {
    return Refuse(
        absl::StrCat("client '", request.client, "' has ", used.requests,
                     " unfinished requests, its quota "
                     "(--client-requests)"),
        kRetrySoon);
  }
  if (options_.max_client_tokens > 0 &&
      used.tokens + request.cost() > options_.max_client_tokens) {
    return Refuse(
        absl::StrCat("client '", request.client, "' has ", used.tokens,
                     " unfinished tokens, this request ", request.cost(),
                     " more, its quota is ", options_.max_client_tokens,
                     " (--client-tokens)"),
        kRetrySoon);
  }
  return {};
}

RequestQueue::Refusal RequestQueue::CheckWait(const QueuedRequest& request,
                                              absl::Time now) const {
  const double rate = rate_.PerSecond(now);
  if (rate <= 0 || (num_queued() == 0)) return {};
  const int64_t ahead = fresh_.CostAhead(FlowOf(request), request.cost());
  const absl::Duration wait = absl::Seconds(static_cast<double>(ahead) / rate);
  const absl::Duration allowed =
      request.detached
          ? absl::InfiniteDuration()
          : std::max(options_.max_queue_wait - ExpectedStart(request, now),
                     absl::ZeroDuration());
  const absl::Duration left = request.deadline - now;
  if (wait <= allowed && wait <= left) return {};
  const absl::Duration limit = std::min(allowed, left);
  return Refuse(
      absl::StrCat("expected wait of ", absl::FormatDuration(wait),
                   " is longer than the ", absl::FormatDuration(limit),
                   allowed < left ? " that --max-queue-wait leaves it"
                                  : " to the request's deadline"),
      std::max(wait - limit, kRetrySoon));
}

void RequestQueue::Restore(const QueuedRequest& request, absl::Time now) {
  PORTOLAN_CHECK(!HasEnded(request.state));
  Entry entry{.request = request};
  if (!request.detached) entry.alone_until = now + options_.reattach;
  if (request.state == RequestState::kRunning) {
    RankState& rank = ranks_[{request.job, request.rank}];
    rank.info.job = request.job;
    rank.info.rank = request.rank;
    rank.info.incarnation = request.incarnation;
    rank.lost_at = now;
    rank.running.emplace(request.seq, 0);
  }
  Insert(std::move(entry));
}

void RequestQueue::Insert(Entry entry) {
  const int64_t seq = entry.request.seq;
  Usage& usage = usage_[entry.request.client];
  usage.requests += 1;
  usage.tokens += entry.request.cost();
  const auto [it, inserted] = entries_.emplace(seq, std::move(entry));
  PORTOLAN_CHECK(inserted);
  if (it->second.request.state == RequestState::kRunning) {
    ++num_running_;
    CountLoad(it->second.request, 0, 1);
    SetTimer(it->second);
  } else {
    Enqueue(it->second);
  }
}

void RequestQueue::Enqueue(Entry& entry) {
  const QueuedRequest& request = entry.request;
  if (request.attempt == 0) {
    entry.flow = FlowOf(request);
    fresh_.Push(entry.flow, {request.seq, request.cost()});
  } else {
    resumed_.insert(request.seq);
  }
  CountLoad(request, 1, 0);
  SetTimer(entry);
}

void RequestQueue::CountLoad(const QueuedRequest& request, int64_t queued,
                             int64_t running) {
  ModelLoad& load = loads_[request.model_label()];
  load.queued += queued;
  load.running += running;
  ForgetIdleLoad(request.model_label());
}

void RequestQueue::ForgetIdleLoad(const std::string& model) {
  const auto load = loads_.find(model);
  if (load == loads_.end() || load->second.queued + load->second.running > 0) {
    return;
  }
  const bool served = std::ranges::any_of(ranks_, [&](const auto& entry) {
    return entry.second.registered && entry.second.info.model_name == model;
  });
  if (!served) loads_.erase(load);
}

void RequestQueue::SetTimer(Entry& entry) {
  timers_.erase({entry.timer, entry.request.seq});
  entry.timer = std::min(entry.request.deadline, entry.alone_until);
  if (entry.request.attempt == 0) {
    entry.timer = std::min(entry.timer, entry.assign_by);
  }
  if (entry.timer != absl::InfiniteFuture()) {
    timers_.insert({entry.timer, entry.request.seq});
  }
}

void RequestQueue::Erase(std::map<int64_t, Entry>::iterator it, bool refund) {
  const Entry& entry = it->second;
  const QueuedRequest& request = entry.request;
  if (request.state == RequestState::kRunning) {
    --num_running_;
    CountLoad(request, 0, -1);
    const auto rank = ranks_.find({request.job, request.rank});
    if (rank != ranks_.end()) rank->second.running.erase(request.seq);
  } else {
    CountLoad(request, -1, 0);
    if (!fresh_.Remove(entry.flow, request.seq)) resumed_.erase(request.seq);
  }
  if (refund) {
    fresh_.Refund(entry.flow, request.max_tokens - request.num_tokens);
  }
  timers_.erase({entry.timer, request.seq});
  const auto usage = usage_.find(request.client);
  usage->second.requests -= 1;
  usage->second.tokens -= request.cost();
  if (usage->second.requests == 0) usage_.erase(usage);
  entries_.erase(it);
}

void RequestQueue::Withdraw(int64_t seq) {
  const auto entry = entries_.find(seq);
  if (entry != entries_.end()) Erase(entry, /*refund=*/false);
}

void RequestQueue::End(int64_t seq, RequestState state, absl::Status status,
                       QueueActions& out) {
  const auto it = entries_.find(seq);
  PORTOLAN_CHECK(it != entries_.end());
  const QueuedRequest& request = it->second.request;
  if (request.state == RequestState::kRunning) {
    const auto rank = ranks_.find({request.job, request.rank});
    if (rank != ranks_.end() && rank->second.session != 0) {
      out.revoke.push_back({rank->second.session, seq, request.attempt});
    }
  }
  const bool charged = request.attempt > 0;
  Erase(it, charged);
  out.ended.push_back({seq, state, std::move(status)});
}

bool RequestQueue::Cancel(int64_t seq, absl::Status why, QueueActions& out) {
  if (!entries_.contains(seq)) return false;
  End(seq, RequestState::kCancelled, std::move(why), out);
  return true;
}

void RequestQueue::Detach(int64_t seq, absl::Time deadline) {
  const auto it = entries_.find(seq);
  if (it == entries_.end()) return;
  Entry& entry = it->second;
  QueuedRequest& request = entry.request;
  const bool fresh = fresh_.Remove(entry.flow, seq);
  request.detached = true;
  request.deadline = deadline;
  entry.alone_until = absl::InfiniteFuture();
  entry.queued_until = absl::InfiniteFuture();
  entry.assign_by = absl::InfiniteFuture();
  if (fresh) {
    entry.flow = FlowOf(request);
    fresh_.Push(entry.flow, {seq, request.cost()});
  }
  SetTimer(entry);
}

void RequestQueue::WatcherCame(int64_t seq) {
  const auto entry = entries_.find(seq);
  if (entry == entries_.end()) return;
  ++entry->second.num_watchers;
  entry->second.alone_until = absl::InfiniteFuture();
  SetTimer(entry->second);
}

void RequestQueue::WatcherWent(int64_t seq, bool owner, absl::Time now,
                               QueueActions& out) {
  const auto it = entries_.find(seq);
  if (it == entries_.end()) return;
  Entry& entry = it->second;
  --entry.num_watchers;
  if (entry.request.detached || entry.num_watchers > 0) return;
  if (owner) {
    Cancel(seq, absl::CancelledError("its client went away"), out);
    return;
  }
  entry.alone_until = now + options_.reattach;
  SetTimer(entry);
}

void RequestQueue::Finish(int64_t seq, absl::Time now) {
  const auto entry = entries_.find(seq);
  if (entry == entries_.end()) return;
  rate_.Add(entry->second.request.cost(), now);
  Erase(entry, /*refund=*/true);
}

void RequestQueue::Tick(absl::Time now, QueueActions& out) {
  while (!timers_.empty() && timers_.begin()->first <= now) {
    Expire(entries_.at(timers_.begin()->second), now, out);
  }
  for (auto it = ranks_.begin(); it != ranks_.end();) {
    const auto rank = it++;
    RankState& state = rank->second;
    if (state.session != 0 && now >= state.heard + options_.rank_timeout) {
      out.lost_sessions.push_back(state.session);
      Disconnected(state.session, now);
    } else if (state.session == 0 && now >= state.lost_at + options_.reattach) {
      Bury(rank, /*died=*/true, out);
    }
  }
}

void RequestQueue::FirstTokenSent(const QueuedRequest& request,
                                  absl::Duration time, absl::Time now) {
  // A longer one leaves nothing to wait just as well, and is forgotten sooner.
  start_times_[request.model_label()].Observe(
      request.prompt_tokens, std::min(time, options_.max_queue_wait), now);
}

absl::Duration RequestQueue::ExpectedStart(const QueuedRequest& request,
                                           absl::Time now) const {
  const auto times = start_times_.find(request.model_label());
  if (times == start_times_.end()) return absl::ZeroDuration();
  return times->second.Expected(request.prompt_tokens, now);
}

// It moves as starts become slower or faster.
void RequestQueue::SetAssignBy(Entry& entry, absl::Time now) const {
  if (entry.queued_until == absl::InfiniteFuture()) return;
  entry.assign_by = entry.queued_until - ExpectedStart(entry.request, now);
}

void RequestQueue::ShedLate(std::span<const int64_t> seqs, QueueActions& out) {
  for (const int64_t seq : seqs) {
    End(seq, RequestState::kFailed,
        absl::ResourceExhaustedError(
            absl::StrCat("no rank was free in time for a first token within "
                         "--max-queue-wait of ",
                         absl::FormatDuration(options_.max_queue_wait))),
        out);
  }
}

void RequestQueue::Expire(Entry& entry, absl::Time now, QueueActions& out) {
  const int64_t seq = entry.request.seq;
  if (entry.request.deadline <= now) {
    return End(seq, RequestState::kFailed,
               absl::DeadlineExceededError("the request's deadline passed"),
               out);
  }
  if (entry.alone_until <= now) {
    return End(seq, RequestState::kCancelled,
               absl::CancelledError("its client did not come back"), out);
  }
  SetAssignBy(entry, now);
  if (entry.assign_by <= now) return ShedLate({&seq, 1}, out);
  SetTimer(entry);  // starts have become faster
}

absl::Time RequestQueue::NextTick() const {
  absl::Time next = absl::InfiniteFuture();
  if (!timers_.empty()) next = timers_.begin()->first;
  for (const auto& [key, rank] : ranks_) {
    next = std::min(next, rank.session != 0 ? rank.heard + options_.rank_timeout
                                            : rank.lost_at + options_.reattach);
  }
  return next;
}

const QueuedRequest* RequestQueue::Find(int64_t seq) const {
  const auto entry = entries_.find(seq);
  return entry == entries_.end() ? nullptr : &entry->second.request;
}

int64_t RequestQueue::num_queued() const {
  return fresh_.num_requests() + static_cast<int64_t>(resumed_.size());
}

int64_t RequestQueue::Position(int64_t seq) const {
  const auto entry = entries_.find(seq);
  if (entry == entries_.end()) return 0;
  const QueuedRequest& request = entry->second.request;
  if (request.state != RequestState::kQueued) return 0;
  const auto resumed = resumed_.find(seq);
  if (resumed != resumed_.end()) {
    return std::distance(resumed_.begin(), resumed);
  }
  return static_cast<int64_t>(resumed_.size()) +
         fresh_.PositionInFlow(FlowOf(request), seq);
}

}  // namespace portolan
