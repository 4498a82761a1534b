#include "runtime/agent/request_maker.h"

#include <utility>

#include "runtime/agent/wire.h"

namespace portolan {

RequestMaker::RequestMaker(Make make, std::function<void()> on_made)
    : make_(std::move(make)),
      on_made_(std::move(on_made)),
      thread_([this] { Loop(); }) {}

RequestMaker::~RequestMaker() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    pushed_or_stopping_.NotifyAll();
  }
  thread_.join();
}

void RequestMaker::Push(int64_t id, v1::Assign assign) {
  MutexLock lock(mu_);
  jobs_.push_back({id, std::move(assign)});
  pushed_or_stopping_.NotifyAll();
}

std::vector<RequestMaker::Made> RequestMaker::Take() {
  MutexLock lock(mu_);
  return std::exchange(made_, {});
}

bool RequestMaker::has_made() const {
  MutexLock lock(mu_);
  return !made_.empty();
}

RequestMaker::Made RequestMaker::MakeNow(int64_t id, v1::Assign assign) const {
  Made made{.id = id, .assign = std::move(assign)};
  made.text = FromAssign(made.assign);
  made.request = make_(made.text, id);
  return made;
}

void RequestMaker::Loop() {
  while (true) {
    Job job;
    {
      MutexLock lock(mu_);
      while (jobs_.empty() && !stopping_) pushed_or_stopping_.Wait(mu_);
      if (stopping_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    Made made = MakeNow(job.id, std::move(job.assign));
    {
      MutexLock lock(mu_);
      made_.push_back(std::move(made));
    }
    on_made_();
  }
}

}  // namespace portolan
