#pragma once

#include <deque>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "experts/file_reader.h"
#include "runtime/base/mutex.h"

namespace portolan {

// FileReader by two threads in pread(): more of them cost CPU and bring no
// bandwidth.
class PreadReader final : public FileReader {
 public:
  explicit PreadReader(int depth);
  ~PreadReader() override;

  std::string_view name() const override { return "pread"; }
  int depth() const override { return depth_; }
  void Submit(const FileRead& read) override ABSL_LOCKS_EXCLUDED(mu_);
  void Wait(absl::Duration timeout, std::vector<FileReadDone>& done) override
      ABSL_LOCKS_EXCLUDED(mu_);
  void Wake() override ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Work() ABSL_LOCKS_EXCLUDED(mu_);

  const int depth_;

  Mutex mu_;
  CondVar work_arrived_;
  CondVar read_done_;
  std::deque<FileRead> queue_ ABSL_GUARDED_BY(mu_);
  std::vector<FileReadDone> done_ ABSL_GUARDED_BY(mu_);
  bool woken_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::vector<std::thread> threads_;
};

}  // namespace portolan
