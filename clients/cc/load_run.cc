#include "clients/cc/load_run.h"

#include <deque>
#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "proto/inference.grpc.pb.h"
#include "runtime/base/mutex.h"

namespace portolan {
namespace {

// Counts calls in work.
class Crowd {
 public:
  void Enter() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    ++size_;
  }
  void Leave() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    --size_;
    changed_.NotifyAll();
  }
  // Waits until fewer than `size` are there; false if `deadline` came first.
  bool WaitUntilBelow(int size, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    while (size_ >= size && absl::Now() < deadline) {
      changed_.WaitFor(mu_, deadline - absl::Now());
    }
    return size_ < size;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  int size_ ABSL_GUARDED_BY(mu_) = 0;
};

// A call in work. gRPC runs its callbacks one after the other; the record
// belongs to them until the call has left the crowd.
class LoadCall {
 public:
  // `open`: it is due at its arrival; else when it is sent.
  LoadCall(const LoadRequest& load, bool open, absl::Time start, Crowd& crowd,
           Interruption& interruption)
      : load_(load),
        start_(start),
        crowd_(crowd),
        scope_(interruption, context_) {
    record_.sent = absl::Now() - start;
    record_.arrival = open ? load.arrival : record_.sent;
    crowd_.Enter();
  }
  virtual ~LoadCall() = default;
  LoadCall(const LoadCall&) = delete;
  LoadCall& operator=(const LoadCall&) = delete;

  virtual void Start(v1::Inference::Stub& stub) = 0;

  grpc::ClientContext& context() { return context_; }
  // After the call has left the crowd.
  const LoadRecord& record() const { return record_; }

 protected:
  const v1::GenerateRequest& request() const { return load_.request; }

  void Take(const v1::GenerateResponse& response) {
    record_.TakeTokens(response.token_ids_size(), absl::Now() - start_);
    if (response.has_finish()) {
      record_.prompt_tokens = response.finish().usage().prompt_tokens();
    }
  }

  // The last thing that a call does.
  void End(const grpc::Status& status) {
    record_.TakeEnd(static_cast<absl::StatusCode>(status.error_code()),
                    absl::Now() - start_);
    crowd_.Leave();
  }

 private:
  const LoadRequest& load_;
  const absl::Time start_;  // of the load
  Crowd& crowd_;
  grpc::ClientContext context_;
  const Interruption::Scope scope_;
  LoadRecord record_;
};

class GenerateCall : public LoadCall,
                     public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  using LoadCall::LoadCall;

  void Start(v1::Inference::Stub& stub) override {
    stub.async()->Generate(&context(), &request(), this);
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    Take(response_);
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override { End(status); }

 private:
  v1::GenerateResponse response_;
};

class SubmitCall : public LoadCall {
 public:
  using LoadCall::LoadCall;

  void Start(v1::Inference::Stub& stub) override {
    stub.async()->Submit(&context(), &request(), &response_,
                         [this](const grpc::Status& status) { End(status); });
  }

 private:
  v1::SubmitResponse response_;
};

class LoadRun {
 public:
  LoadRun(const Connection& connection, const LoadOptions& options,
          Interruption& interruption)
      : connection_(connection),
        options_(options),
        interruption_(interruption),
        stub_(v1::Inference::NewStub(connection.channel())) {}

  std::vector<LoadRecord> Run(const std::vector<LoadRequest>& requests) {
    const absl::Time start = absl::Now();
    for (const LoadRequest& request : requests) {
      if (!WaitForTurn(request, start)) break;
      calls_.push_back(MakeCall(request, start));
      connection_.Prepare(calls_.back()->context());
      calls_.back()->Start(*stub_);
    }
    if (!crowd_.WaitUntilBelow(1, absl::Now() + options_.patience)) {
      for (const auto& call : calls_) call->context().TryCancel();
      crowd_.WaitUntilBelow(1, absl::InfiniteFuture());
    }
    std::vector<LoadRecord> records;
    for (const auto& call : calls_) records.push_back(call->record());
    return records;
  }

 private:
  std::unique_ptr<LoadCall> MakeCall(const LoadRequest& request,
                                     absl::Time start) {
    const bool open = options_.closed == 0;
    if (options_.submit) {
      return std::make_unique<SubmitCall>(request, open, start, crowd_,
                                          interruption_);
    }
    return std::make_unique<GenerateCall>(request, open, start, crowd_,
                                          interruption_);
  }

  // False: no more requests.
  bool WaitForTurn(const LoadRequest& request, absl::Time start) {
    const absl::Time end = start + options_.duration;
    if (options_.closed > 0) {
      return crowd_.WaitUntilBelow(options_.closed, end) && absl::Now() < end &&
             !interruption_.triggered();
    }
    const absl::Time turn = start + request.arrival;
    return turn < end && interruption_.Sleep(turn - absl::Now());
  }

  const Connection& connection_;
  const LoadOptions& options_;
  Interruption& interruption_;
  const std::unique_ptr<v1::Inference::Stub> stub_;
  Crowd crowd_;
  std::deque<std::unique_ptr<LoadCall>> calls_;
};

}  // namespace

std::vector<LoadRecord> RunLoad(const Connection& connection,
                                const std::vector<LoadRequest>& requests,
                                const LoadOptions& options,
                                Interruption& interruption) {
  return LoadRun(connection, options, interruption).Run(requests);
}

}  // namespace portolan
