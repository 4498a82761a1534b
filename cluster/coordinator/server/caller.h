#pragma once

#include <grpcpp/server_context.h>

#include "absl/status/statusor.h"
#include "cluster/coordinator/access.h"
#include "cluster/coordinator/streams.h"
#include "cluster/coordinator/telemetry.h"

namespace portolan {

// Where a call shows who it is, by metadata, certificate and address. Every
// service asks here first. Thread-safe.
class Gate {
 public:
  // Both outlive the gate.
  Gate(const AccessRules& rules, Telemetry& telemetry)
      : rules_(rules), telemetry_(telemetry) {}

  // Sends x-request-id back as initial metadata, if a sound one came.
  // Errors: kUnauthenticated, kPermissionDenied.
  absl::StatusOr<Caller> Enter(grpc::ServerContextBase& context,
                               ServiceKind service) const;

 private:
  const AccessRules& rules_;
  Telemetry& telemetry_;
};

}  // namespace portolan
