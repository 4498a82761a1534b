#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>

#include "runtime/agent/control_stream.h"

namespace portolan {

// A channel to the coordinator that notices a cut link within seconds. Connects
// when it is used.
std::shared_ptr<grpc::Channel> MakeChannel(const CoordinatorAddress& address);

// Shows the rank's token, if it has one, with a call.
void AddToken(const CoordinatorAddress& address, grpc::ClientContext& context);

}  // namespace portolan
