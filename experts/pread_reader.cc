#include "experts/pread_reader.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace portolan {
namespace {

constexpr int kMaxThreads = 2;

int64_t ReadOnce(const FileRead& read) {
  ssize_t result = -1;
  do {
    result = pread(read.fd, read.to.data(), read.to.size(),
                   static_cast<off_t>(read.offset));
  } while (result < 0 && errno == EINTR);
  return result < 0 ? -errno : result;
}

}  // namespace

PreadReader::PreadReader(int depth) : depth_(depth) {
  for (int i = 0; i < std::min(depth, kMaxThreads); ++i) {
    threads_.emplace_back([this] { Work(); });
  }
}

PreadReader::~PreadReader() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    queue_.clear();
  }
  work_arrived_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
}

void PreadReader::Submit(const FileRead& read) {
  {
    MutexLock lock(mu_);
    queue_.push_back(read);
  }
  work_arrived_.NotifyOne();
}

void PreadReader::Wait(absl::Duration timeout,
                       std::vector<FileReadDone>& done) {
  MutexLock lock(mu_);
  if (done_.empty() && !woken_) {
    // A spurious end of the wait is a Wait() without results: allowed.
    if (timeout == absl::InfiniteDuration()) {
      while (done_.empty() && !woken_) read_done_.Wait(mu_);
    } else if (timeout > absl::ZeroDuration()) {
      read_done_.WaitFor(mu_, timeout);
    }
  }
  done.insert(done.end(), done_.begin(), done_.end());
  done_.clear();
  woken_ = false;
}

void PreadReader::Wake() {
  {
    MutexLock lock(mu_);
    woken_ = true;
  }
  read_done_.NotifyAll();
}

void PreadReader::Work() {
  while (true) {
    FileRead read;
    {
      MutexLock lock(mu_);
      while (queue_.empty() && !stopping_) work_arrived_.Wait(mu_);
      if (queue_.empty()) return;
      read = queue_.front();
      queue_.pop_front();
    }
    const int64_t result = ReadOnce(read);
    {
      MutexLock lock(mu_);
      done_.push_back({read.tag, result});
    }
    read_done_.NotifyAll();
  }
}

}  // namespace portolan
