#include "cluster/coordinator/store_thread.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr std::chrono::minutes kHousekeeping(1);

}  // namespace

StoreThread::StoreThread(
    std::unique_ptr<RequestStore> store,
    absl::AnyInvocable<bool(RequestStore&)> housekeeping,
    absl::AnyInvocable<void(const absl::Status&)> on_broken,
    absl::Duration try_again)
    : store_(std::move(store)),
      housekeeping_(std::move(housekeeping)),
      on_broken_(std::move(on_broken)),
      try_again_(try_again),
      thread_([this] { Loop(); }) {}

StoreThread::~StoreThread() { Stop(); }

void StoreThread::Stop() {
  jobs_.Close();
  if (thread_.joinable()) thread_.join();
}

void StoreThread::Loop() {
  using Clock = std::chrono::steady_clock;
  std::vector<Job> jobs;
  Clock::time_point due = Clock::now() + kHousekeeping;
  Clock::time_point next_try = Clock::now();
  const auto pause = absl::ToChronoNanoseconds(try_again_);
  while (jobs_.Take(
      absl::FromChrono((stuck_.empty() ? due : std::min(due, next_try)) -
                       Clock::now()),
      jobs)) {
    const bool was_stuck = !stuck_.empty();
    if (was_stuck && Clock::now() >= next_try) {
      TryStuck();
      next_try = Clock::now() + pause;
    }
    if (!jobs.empty()) RunAll(jobs);
    if (!was_stuck && !stuck_.empty()) next_try = Clock::now() + pause;
    if (Clock::now() < due) continue;
    const bool more = housekeeping_(*store_);
    due = Clock::now();
    if (!more) due += kHousekeeping;
  }
  TryStuck();
  EndStuck();
}

void StoreThread::RunAll(std::vector<Job>& jobs) {
  if (stuck_.empty()) {
    if (RunTogether(jobs).ok()) {
      for (Job& job : jobs) job.done(absl::OkStatus());
      return;
    }
    store_->Rollback();
  }
  for (Job& job : jobs) RunAlone(std::move(job));
}

absl::Status StoreThread::RunTogether(std::span<Job> jobs) {
  Durability durability = Durability::kRead;
  for (const Job& job : jobs) durability = std::max(durability, job.durability);
  const bool writes = durability != Durability::kRead;
  if (writes) {
    PORTOLAN_RETURN_IF_ERROR(store_->Begin(durability == Durability::kDisk));
  }
  for (Job& job : jobs) PORTOLAN_RETURN_IF_ERROR(job.work(*store_));
  return writes ? store_->Commit() : absl::OkStatus();
}

void StoreThread::RunAlone(Job job) {
  if (!stuck_.empty() && job.durability != Durability::kRead) {
    if (job.never_fails) return stuck_.push_back(std::move(job));
    return job.done(why_stuck_);
  }
  absl::Status status = Transact(job);
  if (status.ok() || !job.never_fails) return job.done(std::move(status));
  std::fprintf(stderr,
               "warning: %s; running requests wait for it, new ones are "
               "refused\n",
               std::string(status.message()).c_str());
  why_stuck_ = absl::IsResourceExhausted(status)
                   ? std::move(status)
                   : absl::UnavailableError(absl::StrCat(
                         "the database of --data-dir takes no writes: ",
                         status.message()));
  stuck_.push_back(std::move(job));
}

void StoreThread::TryStuck() {
  while (!stuck_.empty()) {
    if (absl::Status status = Transact(stuck_.front()); !status.ok()) {
      return CountFailure(status);
    }
    num_failures_ = 0;
    Job job = std::move(stuck_.front());
    stuck_.pop_front();
    job.done(absl::OkStatus());
    if (stuck_.empty()) {
      std::fprintf(stderr, "notice: --data-dir takes writes again\n");
    }
  }
}

void StoreThread::CountFailure(const absl::Status& status) {
  // A disk gets room and a lock comes free; the rest stays.
  if (absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) {
    num_failures_ = 0;
  } else if (++num_failures_ == kMaxTries) {
    on_broken_(status);
  }
}

// Nobody waits any longer. What was not kept, a rank brings again.
void StoreThread::EndStuck() {
  for (Job& job : stuck_) job.done(why_stuck_);
  stuck_.clear();
}

absl::Status StoreThread::Transact(Job& job) {
  if (job.durability == Durability::kRead) return job.work(*store_);
  absl::Status status = store_->Begin(job.durability == Durability::kDisk);
  if (status.ok()) status = job.work(*store_);
  if (status.ok()) status = store_->Commit();
  if (!status.ok()) store_->Rollback();
  return status;
}

}  // namespace portolan
