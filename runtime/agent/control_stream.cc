#include "runtime/agent/control_stream.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/control.grpc.pb.h"
#include "runtime/agent/channel.h"
#include "runtime/base/steady_now.h"
#include "runtime/model/philox.h"

namespace portolan {
namespace {

constexpr absl::Duration kFirstWait = absl::Milliseconds(100);
constexpr absl::Duration kLongestWait = absl::Seconds(5);
// An address that does not answer is given up after this.
constexpr absl::Duration kConnectTimeout = absl::Seconds(5);
// Each of them stands for all attempts of the channel within kConnectTimeout.
constexpr int kMaxHangUps = 2;

// For so long the place of this rank may be held by what it was before.
constexpr absl::Duration kTakenFor = absl::Seconds(60);

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
}

}  // namespace

absl::Duration ReconnectDelay::Next() {
  const absl::Duration whole =
      std::min(kFirstWait * (1 << std::min(attempt_++, 20)), kLongestWait);
  return whole * (1 - UniformAt(seed_, draws_++) / 2);
}

bool IsWorthRetrying(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kUnimplemented:
      return false;
    default:
      return true;
  }
}

class ControlStream::Impl {
 public:
  Impl(const CoordinatorAddress& address, RankAgent& agent, uint64_t seed,
       std::function<void(const std::string&)> notice)
      : address_(address),
        agent_(agent),
        notice_(std::move(notice)),
        delay_(seed),
        channel_(MakeChannel(address)),
        stub_(v1::Control::NewStub(channel_)) {
    agent_.SetNotify([this] { Notify(); });
    thread_ = std::thread([this] { Run(); });
  }

  ~Impl() {
    {
      MutexLock lock(mu_);
      stopping_ = true;
      if (context_ != nullptr) context_->TryCancel();
      changed_.NotifyAll();
    }
    thread_.join();
    agent_.SetNotify(nullptr);
  }

  void Finish(absl::Duration timeout) {
    const absl::Time deadline = SteadyNow() + timeout;
    MutexLock lock(mu_);
    while (!finished_ && SteadyNow() < deadline) {
      changed_.WaitFor(mu_, deadline - SteadyNow());
    }
  }

 private:
  using Stream =
      grpc::ClientReaderWriter<v1::RankMessage, v1::CoordinatorMessage>;

  void Run() {
    while (true) {
      const absl::Status status = Serve();
      agent_.Disconnect();
      if (Stopping()) return;
      if (agent_.said_goodbye()) break;
      if (!IsWorthRetrying(status) || IsTaken(status)) {
        agent_.Fail(absl::Status(
            status.code(),
            absl::StrCat("the coordinator at ", address_.address,
                         " refuses this rank: ", status.message())));
        break;
      }
      if (!lost_) notice_(Notice(status));
      lost_ = true;
      WaitUntil(SteadyNow() + delay_.Next());
      if (Stopping()) return;
    }
    MutexLock lock(mu_);
    finished_ = true;
    changed_.NotifyAll();
  }

  // Another job of this name is there to stay: what a rank that died left
  // behind is gone after --rank-timeout.
  bool IsTaken(const absl::Status& status) {
    if (!absl::IsAlreadyExists(status)) {
      taken_since_ = absl::InfiniteFuture();
      return false;
    }
    taken_since_ = std::min(taken_since_, SteadyNow());
    return SteadyNow() - taken_since_ > kTakenFor;
  }

  std::string Notice(const absl::Status& status) const {
    if (absl::IsAlreadyExists(status)) {
      return absl::StrCat("the coordinator at ", address_.address,
                          " has this rank already (", status.message(),
                          "); trying again for a while; jobs that run beside "
                          "each other need a --job of their own");
    }
    return absl::StrCat("no coordinator at ", address_.address, " (",
                        status.message(), "); trying again");
  }

  // One stream, from its opening to its end.
  absl::Status Serve() {
    grpc::ClientContext context;
    AddToken(address_, context);
    if (!Publish(&context)) return absl::CancelledError("stopping");
    const bool connected = WaitForConnection();
    const std::unique_ptr<Stream> stream = stub_->Attach(&context);
    if (!connected) {
      // It fails at once, and says why.
      const grpc::Status status = stream->Finish();
      Publish(nullptr);
      return Explain(status);
    }
    ended_ = false;
    absl::Status broken;
    std::thread reader([&] { broken = Read(*stream, context); });
    if (stream->Write(agent_.Connect())) Write(*stream);
    if (agent_.said_goodbye()) {
      stream->WritesDone();
      WaitForEnd(SteadyNow() + kFirstWait * 10);
      context.TryCancel();
    }
    // In all other cases the call is over, and a cancellation would only hide
    // what the coordinator said.
    reader.join();
    const grpc::Status status = stream->Finish();
    Publish(nullptr);
    if (!broken.ok()) return broken;
    return Explain(status);
  }

  // Sides that agreed on TLS once will do so again, when their certificates are
  // put right: the rank keeps what it has and tries again.
  absl::Status Explain(const grpc::Status& status) {
    absl::Status named = WithRemedy(FromGrpc(status), address_);
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return named;
    if (was_attached_) return absl::UnavailableError(named.message());
    // Whoever takes a connection and hangs up, again and again, does not like
    // how we shake hands.
    const bool hung_up = IsHangUp(named);
    num_hang_ups_ = hung_up ? num_hang_ups_ + 1 : 0;
    if (num_hang_ups_ < kMaxHangUps) return named;
    return absl::FailedPreconditionError(named.message());
  }

  bool WaitForConnection() {
    const absl::Time deadline = SteadyNow() + kConnectTimeout;
    while (!Stopping() && SteadyNow() < deadline) {
      // gRPC goes by the wall clock.
      const absl::Time look = absl::Now() + kFirstWait;
      if (channel_->WaitForConnected(absl::ToChronoTime(look))) return true;
    }
    return false;
  }

  absl::Status Read(Stream& stream, grpc::ClientContext& context) {
    absl::Status status;
    v1::CoordinatorMessage message;
    while (status.ok() && stream.Read(&message)) {
      status = agent_.Receive(message);
      if (message.has_accepted()) Found();
      Notify();
    }
    ended_ = true;
    if (!status.ok()) context.TryCancel();
    Notify();
    return status;
  }

  void Found() {
    delay_.Reset();
    was_attached_ = true;
    if (lost_) notice_(absl::StrCat("attached to ", address_.address));
    lost_ = false;
  }

  // Until the stream breaks, or the goodbye is sent.
  void Write(Stream& stream) {
    while (!ended_ && !Stopping()) {
      const uint64_t seen = Changes();
      std::optional<v1::RankMessage> message = agent_.NextMessage();
      if (message) {
        if (!stream.Write(*message) || agent_.said_goodbye()) return;
      } else {
        WaitForChange(seen, agent_.next_message_due());
      }
    }
  }

  void Notify() {
    MutexLock lock(mu_);
    ++num_changes_;
    changed_.NotifyAll();
  }
  uint64_t Changes() {
    MutexLock lock(mu_);
    return num_changes_;
  }
  bool Stopping() {
    MutexLock lock(mu_);
    return stopping_;
  }
  // What the destructor may cancel; false if it is too late.
  bool Publish(grpc::ClientContext* context) {
    MutexLock lock(mu_);
    context_ = context;
    return !stopping_;
  }
  void WaitForChange(uint64_t seen, absl::Time until) {
    MutexLock lock(mu_);
    while (num_changes_ == seen && !stopping_) {
      const absl::Duration left = until - SteadyNow();
      if (left <= absl::ZeroDuration()) return;
      changed_.WaitFor(mu_, std::min(left, absl::Hours(1)));
    }
  }
  void WaitUntil(absl::Time time) {
    MutexLock lock(mu_);
    while (!stopping_ && SteadyNow() < time) {
      changed_.WaitFor(mu_, time - SteadyNow());
    }
  }
  void WaitForEnd(absl::Time time) {
    MutexLock lock(mu_);
    while (!ended_ && !stopping_ && SteadyNow() < time) {
      changed_.WaitFor(mu_, time - SteadyNow());
    }
  }

  const CoordinatorAddress address_;
  RankAgent& agent_;
  const std::function<void(const std::string&)> notice_;
  ReconnectDelay
      delay_;  // by the reader while a stream is open, else by thread_
  absl::Time taken_since_ = absl::InfiniteFuture();
  std::atomic<bool> lost_{false};
  std::atomic<bool> was_attached_{false};
  int num_hang_ups_ = 0;            // in a row, before the first attachment
  std::atomic<bool> ended_{false};  // no message will come from this stream
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Control::Stub> stub_;

  Mutex mu_;
  CondVar changed_;
  uint64_t num_changes_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mu_) = nullptr;

  std::thread thread_;
};

ControlStream::ControlStream(const CoordinatorAddress& address,
                             RankAgent& agent, uint64_t seed,
                             std::function<void(const std::string&)> notice)
    : impl_(std::make_unique<Impl>(address, agent, seed, std::move(notice))) {}

ControlStream::~ControlStream() = default;

void ControlStream::Finish(absl::Duration timeout) { impl_->Finish(timeout); }

}  // namespace portolan
