#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "proto/control.pb.h"
#include "runtime/base/mutex.h"
#include "runtime/serving/text_request.h"

namespace portolan {

// Makes requests of assignments on a thread of its own, in their order: the
// tokens of a long text take their time, which the step loop has not.
//
// Thread-safe.
class RequestMaker {
 public:
  using Make =
      std::function<absl::StatusOr<Request>(const TextRequest&, int64_t id)>;
  struct Made {
    int64_t id = 0;
    v1::Assign assign = {};
    TextRequest text = {};
    absl::StatusOr<Request> request = Request();
  };

  // `on_made` is called on the maker's thread, after each.
  RequestMaker(Make make, std::function<void()> on_made);
  // Drops what is not made; waits for the one in work.
  ~RequestMaker();
  RequestMaker(const RequestMaker&) = delete;
  RequestMaker& operator=(const RequestMaker&) = delete;

  void Push(int64_t id, v1::Assign assign) ABSL_LOCKS_EXCLUDED(mu_);
  // What was made since the last call.
  std::vector<Made> Take() ABSL_LOCKS_EXCLUDED(mu_);
  bool has_made() const ABSL_LOCKS_EXCLUDED(mu_);

  // On the caller's thread.
  Made MakeNow(int64_t id, v1::Assign assign) const;

 private:
  struct Job {
    int64_t id = 0;
    v1::Assign assign = {};
  };

  void Loop() ABSL_LOCKS_EXCLUDED(mu_);

  const Make make_;
  const std::function<void()> on_made_;

  mutable Mutex mu_;
  CondVar pushed_or_stopping_;
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mu_);
  std::vector<Made> made_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace portolan
