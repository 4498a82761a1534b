#include "clients/cc/client.h"

#include <random>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "clients/cc/errors.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

// The coordinator ends a request that runs out of time and says so; this is
// how much longer we wait for its word.
constexpr absl::Duration kLastWord = absl::Seconds(2);

uint64_t RandomSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

void SetTimeout(absl::Time deadline, v1::GenerateRequest& request) {
  if (request.has_timeout() || deadline == absl::InfiniteFuture()) return;
  const absl::Duration left =
      std::max(deadline - absl::Now(), absl::Milliseconds(1));
  absl::Duration rest;
  request.mutable_timeout()->set_seconds(
      absl::IDivDuration(left, absl::Seconds(1), &rest));
  request.mutable_timeout()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
}

}  // namespace

std::string RandomKey() {
  return absl::StrFormat("%016x%016x", RandomSeed(), RandomSeed());
}

Client::Client(Connection connection, ClientOptions options,
               Interruption& interruption)
    : connection_(std::move(connection)),
      options_(std::move(options)),
      interruption_(interruption),
      created_(absl::Now()),
      stub_(v1::Inference::NewStub(connection_.channel())),
      health_(grpc::health::v1::Health::NewStub(connection_.channel())) {}

absl::StatusOr<Transcript> Client::Generate(v1::GenerateRequest request,
                                            absl::Time deadline,
                                            const OnResponse& on_response) {
  if (request.idempotency_key().empty()) {
    request.set_idempotency_key(RandomKey());
  }
  SetTimeout(deadline, request);
  Transcript transcript;
  bool watching = false;
  const absl::Status status = ReadToEnd(
      [&](grpc::ClientContext& context,
          const Transcript& known) -> std::unique_ptr<Stream> {
        watching = !known.request_id().empty();
        if (!watching) return stub_->Generate(&context, request);
        v1::WatchRequest watch;
        watch.set_request_id(known.request_id());
        watch.set_from_offset(known.next_offset());
        return stub_->Watch(&context, watch);
      },
      deadline, on_response, transcript);
  if (absl::IsCancelled(status) && watching && !transcript.finished()) {
    // Nobody reads the answer: the user is leaving. The call that made the
    // request is gone, so its end does not cancel it any more.
    v1::CancelRequest cancel;
    cancel.set_request_id(transcript.request_id());
    grpc::ClientContext context;
    connection_.Prepare(context);
    context.set_deadline(absl::ToChronoTime(absl::Now() + kLastWord));
    v1::RequestInfo info;
    (void)stub_->Cancel(&context, cancel, &info).ok();
  }
  PORTOLAN_RETURN_IF_ERROR(status);
  return transcript;
}

absl::StatusOr<Transcript> Client::Watch(const std::string& request_id,
                                         uint32_t from, absl::Time deadline,
                                         const OnResponse& on_response) {
  Transcript transcript(from);
  PORTOLAN_RETURN_IF_ERROR(ReadToEnd(
      [&](grpc::ClientContext& context, const Transcript& known) {
        v1::WatchRequest watch;
        watch.set_request_id(request_id);
        watch.set_from_offset(known.next_offset());
        return stub_->Watch(&context, watch);
      },
      deadline, on_response, transcript));
  return transcript;
}

grpc::Status Client::ReadOnce(const OpenStream& open, absl::Time deadline,
                              const OnResponse& on_response,
                              Transcript& transcript, absl::Status& fault) {
  grpc::ClientContext context;
  connection_.Prepare(context);
  if (deadline != absl::InfiniteFuture()) {
    context.set_deadline(absl::ToChronoTime(deadline + kLastWord));
  }
  const Interruption::Scope scope(interruption_, context);
  const std::unique_ptr<Stream> stream = open(context, transcript);
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
    fault = transcript.Add(response);
    if (!fault.ok()) {
      context.TryCancel();
      break;
    }
    answered_ = true;
    if (on_response) on_response(response);
  }
  return stream->Finish();
}

absl::Status Client::ReadToEnd(const OpenStream& open, absl::Time deadline,
                               const OnResponse& on_response,
                               Transcript& transcript) {
  Backoff backoff(options_.backoff, RandomSeed());
  while (true) {
    const std::string known_id = transcript.request_id();
    const uint32_t known = transcript.next_offset();
    absl::Status fault;
    const grpc::Status status =
        ReadOnce(open, deadline, on_response, transcript, fault);
    // A finish with an error comes with a status of the same code.
    if (transcript.finished()) return absl::OkStatus();
    PORTOLAN_RETURN_IF_ERROR(fault);
    if (transcript.next_offset() != known ||
        transcript.request_id() != known_id) {
      backoff.Reset();
    }
    // A stream that ends well before its request is a lost one.
    PORTOLAN_RETURN_IF_ERROR(WaitToRetry(
        status.ok() ? grpc::Status(grpc::StatusCode::UNAVAILABLE,
                                   "the stream ended before the request")
                    : status,
        backoff, deadline));
  }
}

absl::Status Client::WaitToRetry(const grpc::Status& status, Backoff& backoff,
                                 absl::Time deadline) {
  if (interruption_.triggered()) return absl::CancelledError("interrupted");
  const absl::Status failure = Failure(status);
  if (!IsRetryable(status)) return failure;
  const absl::Time now = absl::Now();
  const std::optional<absl::Duration> delay =
      backoff.Next(now, RetryDelay(status));
  if (!delay.has_value() || now + *delay > deadline) return failure;
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE ||
      RetryDelay(status).has_value()) {
    answered_ = true;
  }
  if (!answered_ && now + *delay > created_ + options_.wait_for_server) {
    return failure;
  }
  if (options_.on_retry) options_.on_retry(failure, *delay);
  return interruption_.Sleep(*delay) ? absl::OkStatus()
                                     : absl::CancelledError("interrupted");
}

absl::Status Client::Failure(const grpc::Status& status) const {
  return ToStatus(status, connection_.coordinator());
}

absl::Status Client::Call(
    const std::function<grpc::Status(grpc::ClientContext&)>& call) {
  Backoff backoff(options_.backoff, RandomSeed());
  while (true) {
    grpc::ClientContext context;
    connection_.Prepare(context);
    context.set_deadline(
        absl::ToChronoTime(absl::Now() + options_.call_timeout));
    grpc::Status status;
    {
      const Interruption::Scope scope(interruption_, context);
      status = call(context);
    }
    if (status.ok()) {
      answered_ = true;
      return absl::OkStatus();
    }
    PORTOLAN_RETURN_IF_ERROR(
        WaitToRetry(status, backoff, absl::InfiniteFuture()));
  }
}

absl::StatusOr<v1::SubmitResponse> Client::Submit(v1::GenerateRequest request) {
  if (request.idempotency_key().empty()) {
    request.set_idempotency_key(RandomKey());
  }
  v1::SubmitResponse response;
  PORTOLAN_RETURN_IF_ERROR(Call([&](grpc::ClientContext& context) {
    return stub_->Submit(&context, request, &response);
  }));
  return response;
}

absl::StatusOr<v1::RequestInfo> Client::Get(const std::string& request_id,
                                            bool include_output) {
  v1::GetRequest request;
  request.set_request_id(request_id);
  request.set_include_output(include_output);
  v1::RequestInfo info;
  PORTOLAN_RETURN_IF_ERROR(Call([&](grpc::ClientContext& context) {
    return stub_->Get(&context, request, &info);
  }));
  return info;
}

absl::StatusOr<v1::ListResponse> Client::List(const v1::ListRequest& request) {
  v1::ListResponse response;
  PORTOLAN_RETURN_IF_ERROR(Call([&](grpc::ClientContext& context) {
    return stub_->List(&context, request, &response);
  }));
  return response;
}

absl::StatusOr<v1::RequestInfo> Client::Cancel(const std::string& request_id) {
  v1::CancelRequest request;
  request.set_request_id(request_id);
  v1::RequestInfo info;
  PORTOLAN_RETURN_IF_ERROR(Call([&](grpc::ClientContext& context) {
    return stub_->Cancel(&context, request, &info);
  }));
  return info;
}

absl::StatusOr<v1::Stats> Client::GetStats() {
  v1::Stats stats;
  PORTOLAN_RETURN_IF_ERROR(Call([&](grpc::ClientContext& context) {
    return stub_->GetStats(&context, v1::GetStatsRequest(), &stats);
  }));
  return stats;
}

absl::StatusOr<grpc::health::v1::HealthCheckResponse::ServingStatus>
Client::Health(const std::string& service) {
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  PORTOLAN_RETURN_IF_ERROR(Call([&](grpc::ClientContext& context) {
    return health_->Check(&context, request, &response);
  }));
  return response.status();
}

}  // namespace portolan
