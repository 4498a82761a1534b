#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>

#include "absl/status/status.h"
#include "runtime/agent/control_stream.h"

namespace portolan {

// A channel to the coordinator that notices a cut link within seconds. Connects
// when it is used.
std::shared_ptr<grpc::Channel> MakeChannel(const CoordinatorAddress& address);

// Shows the rank's token, if it has one, with a call.
void AddToken(const CoordinatorAddress& address, grpc::ClientContext& context);

// What a failed call means to whoever started the rank: adds the flag that
// mends it. kFailedPrecondition if the two sides do not agree on TLS, which no
// retry changes.
absl::Status WithRemedy(const absl::Status& status,
                        const CoordinatorAddress& address);

// The other side took the connection and closed it before anything was said.
bool IsHangUp(const absl::Status& status);

}  // namespace portolan
