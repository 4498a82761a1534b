#pragma once

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/control.pb.h"
#include "proto/inference.pb.h"

namespace portolan {

// The far ends of the hub. They are interfaces so that gRPC, which cannot run
// under ThreadSanitizer, stays out of the hub. All calls come from the hub's
// thread.

// A client that follows a request.
class ClientStream {
 public:
  virtual ~ClientStream() = default;
  // One at a time: RequestHub::ClientWritten() must have followed the last one.
  virtual void Send(v1::GenerateResponse message) = 0;
  // The last call, and not during a Send().
  virtual void End(absl::Status status) = 0;
};

// A rank. Its first message comes unasked, and each call of ReadNext() asks for
// another.
class RankStream {
 public:
  virtual ~RankStream() = default;
  // One at a time: RequestHub::RankWritten() must have followed the last one.
  virtual void Send(v1::CoordinatorMessage message) = 0;
  virtual void ReadNext() = 0;
  // The last call, and not during a Send().
  virtual void End(absl::Status status) = 0;
};

// Who calls.
struct Caller {
  // Name of the token, else subject of the certificate, else address; quotas
  // count by it.
  std::string client = {};
  bool sees_all = true;         // else its own requests only
  std::string request_id = {};  // x-request-id
  std::string traceparent = {};
  // How long the call itself may take.
  absl::Duration time_left = absl::InfiniteDuration();
};

}  // namespace portolan
