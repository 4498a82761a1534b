#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/token_exchange.h"
#include "runtime/serving/engine.h"

namespace portolan {

// Where a rank's requests come from. Asked at step borders only.
class RequestFeed {
 public:
  virtual ~RequestFeed() = default;

  // Admits what is new to the engine and cancels what is no longer wanted.
  virtual absl::Status Poll(Engine& engine) = 0;

  // True once no request will come any more: the loop ends when all ranks are
  // closed and idle and none has output pending.
  virtual bool closed() const = 0;

  // Another rank is closed: take no new requests either.
  virtual void Close() {}

  // Whether something that sequences gave is not out of the rank's hands.
  virtual bool has_output() const { return false; }

  // All ranks are idle: returns when there may be work again. Costs next to no
  // CPU, and is ended by a peer's step record.
  // Errors: as Transport::WaitForMessage().
  virtual absl::Status WaitForWork() = 0;
};

// What the ranks bring to rank 0 between two steps: finished results.
class ResultCollector {
 public:
  virtual ~ResultCollector() = default;
  // Whether this rank has something to send now.
  virtual bool has_output() const = 0;
  // Collective: moves what every rank has to rank 0.
  virtual absl::Status Collect() = 0;
};

// The step loop of one rank: the same steps on all ranks, in lock-step, until
// all are idle and closed.
class StepLoop {
 public:
  // All must outlive the loop; `collector`, `observer` and `profile` may be
  // null.
  StepLoop(TokenExchange& exchange, Engine& engine, RequestFeed& feed,
           ResultCollector* collector = nullptr,
           ForwardObserver* observer = nullptr, Profile* profile = nullptr);

  // Errors: of any rank, the same on all. A local one is told to the others
  // first. The loop cannot be run again after an error.
  absl::Status Run();

  int64_t num_steps() const { return num_steps_; }

 private:
  // What the step records of all ranks say together.
  struct Agreement {
    int64_t num_tokens = 0;
    bool any_work = false;
    bool any_output = false;
    bool any_closed = false;
    bool all_closed = true;
  };

  absl::Status RunSteps();
  absl::StatusOr<Agreement> Step();
  absl::StatusOr<Agreement> BeginStep();

  TokenExchange& exchange_;
  Engine& engine_;
  RequestFeed& feed_;
  ResultCollector* const collector_;
  ForwardObserver* const observer_;
  Profile* const profile_;
  int64_t num_steps_ = 0;
};

}  // namespace portolan
