#pragma once

#include <functional>
#include <memory>

#include "cluster/coordinator/hub.h"
#include "cluster/coordinator/server/caller.h"

namespace grpc {
class Service;
}

namespace portolan {

// The gRPC faces of the hub: calls become functions of RequestHub, whose
// streams become gRPC's. They decide nothing. Both outlive the
// server. `complete_stats` adds what the hub does not know.
std::unique_ptr<grpc::Service> MakeInferenceService(
    RequestHub& hub, const Gate& gate,
    std::function<void(v1::Stats&)> complete_stats);
std::unique_ptr<grpc::Service> MakeControlService(RequestHub& hub,
                                                  const Gate& gate);

}  // namespace portolan
