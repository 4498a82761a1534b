#include "cluster/coordinator/store_thread.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <utility>

#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr std::chrono::minutes kHousekeeping(1);
constexpr std::chrono::milliseconds kTryAgain(500);

}  // namespace

StoreThread::StoreThread(std::unique_ptr<RequestStore> store,
                         absl::AnyInvocable<bool(RequestStore&)> housekeeping)
    : store_(std::move(store)),
      housekeeping_(std::move(housekeeping)),
      thread_([this] { Loop(); }) {}

StoreThread::~StoreThread() { Stop(); }

void StoreThread::Stop() {
  stopping_ = true;
  jobs_.Close();
  if (thread_.joinable()) thread_.join();
}

void StoreThread::Loop() {
  using Clock = std::chrono::steady_clock;
  std::vector<Job> jobs;
  Clock::time_point due = Clock::now() + kHousekeeping;
  while (jobs_.Take(absl::FromChrono(due - Clock::now()), jobs)) {
    if (!jobs.empty()) RunAll(jobs);
    if (Clock::now() < due) continue;
    const bool more = housekeeping_(*store_);
    due = Clock::now();
    if (!more) due += kHousekeeping;
  }
}

void StoreThread::RunAll(std::vector<Job>& jobs) {
  if (RunTogether(jobs).ok()) {
    for (Job& job : jobs) job.done(absl::OkStatus());
    return;
  }
  store_->Rollback();
  for (Job& job : jobs) RunAlone(job);
}

absl::Status StoreThread::RunTogether(std::vector<Job>& jobs) {
  Durability durability = Durability::kRead;
  for (const Job& job : jobs) durability = std::max(durability, job.durability);
  const bool writes = durability != Durability::kRead;
  if (writes) {
    PORTOLAN_RETURN_IF_ERROR(store_->Begin(durability == Durability::kDisk));
  }
  for (Job& job : jobs) PORTOLAN_RETURN_IF_ERROR(job.work(*store_));
  return writes ? store_->Commit() : absl::OkStatus();
}

void StoreThread::RunAlone(Job& job) {
  absl::Status status = Transact(job);
  bool told = false;
  while (!status.ok() && job.never_fails && !stopping_) {
    if (!std::exchange(told, true)) {
      std::fprintf(stderr, "warning: %s; running requests wait for it\n",
                   std::string(status.message()).c_str());
    }
    std::this_thread::sleep_for(kTryAgain);
    status = Transact(job);
  }
  job.done(std::move(status));
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
