#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace grpc {
class ServerContextBase;
}

namespace portolan {

// The status as gRPC sends it. Its payloads (google.rpc.RetryInfo, BadRequest)
// become grpc-status-details-bin.
grpc::Status ToGrpc(const absl::Status& status);

// Adds grpc-retry-pushback-ms if the status says when to retry. Before the
// call is finished.
void AddPushback(const absl::Status& status, grpc::ServerContextBase& context);

}  // namespace portolan
