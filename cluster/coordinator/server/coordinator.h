#pragma once

#include <grpcpp/impl/service_type.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/coordinator/hub.h"
#include "cluster/coordinator/server/caller.h"
#include "cluster/coordinator/server/credentials.h"
#include "cluster/coordinator/shared_maps.h"

namespace portolan {

struct CoordinatorOptions {
  // host:port or unix:PATH; port 0 takes a free one.
  std::string listen = "127.0.0.1:50051";
  // Directory of the database; made if it is not there. One coordinator only.
  std::string data_dir = {};
  // host:port of /metrics, /healthz and a status page. Empty: none.
  std::string http = {};
  std::string log_file = {};  // of events; empty: stderr
  SecurityOptions security = {};
  int max_message_bytes = 16 << 20;  // of clients
  // The ranks are a part of the same service: without any it does not serve.
  // Else it takes requests all the same, and ranks may come later.
  bool has_own_ranks = false;
  // The database takes no writes, for good: nothing goes on before a restart.
  // Called once, on a thread that must not be held up.
  std::function<void(const absl::Status&)> on_broken = [](const absl::Status&) {
  };
  HubOptions hub = {};
  StoreOptions store = {};               // its path is set by data_dir
  SharedMaps::Options expert_maps = {};  // of each model and row format
  // The wall clock at the start; for tests.
  absl::Time wall_now = absl::InfinitePast();

  // Errors: kInvalidArgument naming the flag.
  absl::Status Validate() const;
};

// The coordinator as a whole: gRPC server, hub and database. What
// `portolan coordinator` runs, and `portolan serve` in rank 0.
//
// grpc.health.v1: the service portolan.v1.Inference is SERVING while a rank is
// attached, or was within the reattach time; the server as a whole (""), and
// /healthz with it, also without ranks, unless they are its own. Neither is
// while it drains, or once the database takes no writes for good.
//
// Thread-safe.
class Coordinator {
 public:
  // Makes a further service for the same server; what it is given outlives it.
  // Its messages may be of any length, but for what Gate::Read() says.
  using MakeService =
      std::function<std::unique_ptr<grpc::Service>(const Gate& gate)>;

  // Listens, and has written the bound address to DATA_DIR/endpoint.json.
  // Errors: kFailedPrecondition (the data directory is another coordinator's,
  // or of a newer portolan), kInvalidArgument, kUnavailable (the address is
  // taken), kPermissionDenied, kDataLoss.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Start(
      const CoordinatorOptions& options,
      const std::vector<MakeService>& further_services = {});
  // Ends at once: streams get UNAVAILABLE, what is accepted waits for the next
  // start.
  virtual ~Coordinator() = default;

  // Where it listens, e.g. "127.0.0.1:43211".
  virtual const std::string& address() const = 0;
  // Of /metrics; empty if there is none.
  virtual const std::string& http_address() const = 0;

  // Health says NOT_SERVING, new requests get UNAVAILABLE, ranks are told to
  // end what they have.
  virtual void Drain() = 0;
  // After Drain(): true once nothing runs any more and clients have it all;
  // false after `grace`.
  virtual bool WaitDrained(absl::Duration grace) = 0;
};

}  // namespace portolan
