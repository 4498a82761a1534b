#pragma once

#include <memory>

#include "cluster/coordinator/hub.h"
#include "cluster/coordinator/server/caller.h"

namespace grpc {
class Service;
}

namespace portolan {

// The gRPC faces of the hub: calls become functions of RequestHub, whose
// streams become gRPC's. They decide nothing. Both outlive the
// server.
std::unique_ptr<grpc::Service> MakeInferenceService(RequestHub& hub,
                                                    const Gate& gate);
std::unique_ptr<grpc::Service> MakeControlService(RequestHub& hub,
                                                  const Gate& gate);

}  // namespace portolan
