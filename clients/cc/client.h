#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "clients/cc/backoff.h"
#include "clients/cc/connection.h"
#include "clients/cc/interruption.h"
#include "clients/cc/transcript.h"
#include "proto/health.grpc.pb.h"
#include "proto/inference.grpc.pb.h"

namespace portolan {

struct ClientOptions {
  BackoffOptions backoff;
  // For a coordinator that never answered yet. Zero: its absence is an error
  // at once, for it is most likely a wrong address.
  absl::Duration wait_for_server = absl::ZeroDuration();
  // Of calls that answer once; streams last as long as their request.
  absl::Duration call_timeout = absl::Seconds(30);
  // Told before each wait: what failed, and how long the wait is.
  std::function<void(const absl::Status&, absl::Duration)> on_retry;
};

// Called with each message as it comes.
using OnResponse = std::function<void(const v1::GenerateResponse&)>;

// Talks to a coordinator and goes on where it was when that, or the way to it,
// was lost for a while. Requests carry an idempotency key, so that a retry
// never makes a second one.
//
// Errors of all calls: as the coordinator gives them; kUnavailable if there is
// none; kCancelled once the interruption is triggered. Messages say what to do.
//
// Thread-safe; calls block.
class Client {
 public:
  // `interruption` must outlive the client.
  Client(Connection connection, ClientOptions options,
         Interruption& interruption);

  // Generates to the end. An interruption cancels the request. `deadline`
  // bounds all tries together and becomes the request's timeout if it has none.
  absl::StatusOr<Transcript> Generate(v1::GenerateRequest request,
                                      absl::Time deadline,
                                      const OnResponse& on_response);

  // Hands the request over for good.
  absl::StatusOr<v1::SubmitResponse> Submit(v1::GenerateRequest request);

  // Follows a request from a token on to its end, across lost connections;
  // each token comes once. An interruption leaves the request alone.
  absl::StatusOr<Transcript> Watch(const std::string& request_id, uint32_t from,
                                   absl::Time deadline,
                                   const OnResponse& on_response);

  absl::StatusOr<v1::RequestInfo> Get(const std::string& request_id,
                                      bool include_output);
  absl::StatusOr<v1::ListResponse> List(const v1::ListRequest& request);
  absl::StatusOr<v1::RequestInfo> Cancel(const std::string& request_id);
  absl::StatusOr<v1::Stats> GetStats();
  // `service`: empty for the server as a whole.
  absl::StatusOr<grpc::health::v1::HealthCheckResponse::ServingStatus> Health(
      const std::string& service);

 private:
  using Stream = grpc::ClientReaderInterface<v1::GenerateResponse>;
  using OpenStream = std::function<std::unique_ptr<Stream>(grpc::ClientContext&,
                                                           const Transcript&)>;

  // One stream to its end or failure; `transcript` takes what comes.
  grpc::Status ReadOnce(const OpenStream& open, absl::Time deadline,
                        const OnResponse& on_response, Transcript& transcript,
                        absl::Status& fault);
  absl::Status ReadToEnd(const OpenStream& open, absl::Time deadline,
                         const OnResponse& on_response, Transcript& transcript);
  // Waits before the next try; else the error that ends the tries.
  absl::Status WaitToRetry(const grpc::Status& status, Backoff& backoff,
                           absl::Time deadline);
  absl::Status Failure(const grpc::Status& status) const;
  absl::Status Call(
      const std::function<grpc::Status(grpc::ClientContext&)>& call);

  const Connection connection_;
  const ClientOptions options_;
  Interruption& interruption_;
  const absl::Time created_;
  const std::unique_ptr<v1::Inference::Stub> stub_;
  const std::unique_ptr<grpc::health::v1::Health::Stub> health_;
  std::atomic<bool> answered_ = false;
};

// A key that nobody else has: 128 random bits in hexadecimal.
std::string RandomKey();

}  // namespace portolan
