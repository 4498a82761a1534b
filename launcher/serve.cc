#include "launcher/serve.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "cluster/coordinator/server/coordinator.h"
#include "comm/end_timer.h"
#include "comm/termination.h"
#include "launcher/console.h"
#include "launcher/coordinator_options.h"
#include "launcher/serve_options.h"
#include "launcher/service.h"
#include "runtime/base/status_macros.h"
#include "runtime/serving/collectives.h"

namespace portolan {
namespace {

// A job of threads has no MPI session that counts its SIGTERMs and lets the
// second one end it.
std::unique_ptr<EndTimer> CatchTerminationOfThreads(const JobOptions& job) {
  if (job.is_process()) return nullptr;
  CatchTermination();
  return std::make_unique<EndTimer>(absl::InfiniteDuration(),
                                    absl::InfiniteDuration());
}

absl::StatusOr<int> RunWorker(ServiceOptions options) {
  options.job.drains = true;
  options.job.shares_history = true;
  options.Complete();
  PORTOLAN_RETURN_IF_ERROR(options.Validate());
  PORTOLAN_ASSIGN_OR_RETURN(const CoordinatorAddress address,
                            ReadAddress(options));
  const std::unique_ptr<EndTimer> timer =
      CatchTerminationOfThreads(options.job);
  std::atomic<bool> interrupted = false;
  PORTOLAN_RETURN_IF_ERROR(
      RunJob(options.job, [&](const Model& model, RunWorld run_world) {
        return run_world([&](Transport& transport) {
          return ServeRank(options, address, model, transport, {}, interrupted);
        });
      }));
  return interrupted ? kExitRestart : kExitDone;
}

// `serve`: what its rank 0 adds.
struct ServeOptions {
  ServiceOptions service;
  CoordinatorOptions coordinator;
};

// What is left of a drained coordinator's streams to its clients.
constexpr absl::Duration kLastStreams = absl::Seconds(5);

bool IsOneHost(const Transport& transport) {
  for (int rank = 1; rank < transport.world_size(); ++rank) {
    if (transport.host(Rank{rank}) != transport.host(Rank{0})) return false;
  }
  return true;
}

// Where the ranks find a coordinator that listens on `bound` in rank 0.
absl::StatusOr<std::string> AddressForRanks(const std::string& bound,
                                            const Transport& transport) {
  const size_t colon = bound.rfind(':');
  const std::string host = bound.substr(0, colon);
  const std::string port = bound.substr(colon + 1);
  const bool one_host = IsOneHost(transport);
  const bool everywhere = host == "0.0.0.0" || host == "[::]" || host == "*";
  if (everywhere && one_host) return absl::StrCat("127.0.0.1:", port);
  if (everywhere) {
    return absl::StrCat(std::string(transport.host(Rank{0})), ":", port);
  }
  const bool local = host == "unix" || host == "localhost" || host == "[::1]" ||
                     host.rfind("127.", 0) == 0;
  if (local && !one_host) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listen ", bound,
                     ": ranks on other hosts cannot reach it; listen on an "
                     "address of this host or on 0.0.0.0"));
  }
  return bound;
}

// Starts the coordinator on rank 0 and tells all ranks where it is. Collective.
absl::StatusOr<std::string> StartCoordinator(
    const CoordinatorOptions& options, Transport& transport,
    std::unique_ptr<Coordinator>& coordinator) {
  absl::StatusOr<std::string> address = std::string();
  if (transport.rank() == Rank{0}) {
    absl::StatusOr<std::unique_ptr<Coordinator>> started =
        Coordinator::Start(options);
    address = started.ok() ? AddressForRanks((*started)->address(), transport)
                           : started.status();
    if (started.ok()) coordinator = *std::move(started);
  }
  PORTOLAN_RETURN_IF_ERROR(
      AgreeOnStatus(transport, address.status(), kStartTimeout));
  return BroadcastFromRoot(transport, *address, kStartTimeout);
}

// What the ranks show to the coordinator of their own job: it trusts the files
// that it was given itself.
absl::StatusOr<CoordinatorAddress> OwnAddress(const ServeOptions& options) {
  const SecurityOptions& security = options.coordinator.security;
  ServiceOptions ranks = options.service;
  ranks.token_file = security.token_file;
  ranks.tls = !security.tls_cert.empty();
  if (!ranks.tls) return ReadAddress(ranks);
  if (ranks.tls_ca_file.empty()) ranks.tls_ca_file = security.tls_cert;
  if (!security.tls_client_ca.empty()) {
    ranks.tls_cert_file = security.tls_cert;
    ranks.tls_key_file = security.tls_key;
  }
  return ReadAddress(ranks);
}

absl::Status RunServeRank(const ServeOptions& options,
                          CoordinatorAddress address, const Model& model,
                          Transport& transport,
                          std::atomic<bool>& interrupted) {
  std::unique_ptr<Coordinator> coordinator;  // rank 0 only
  PORTOLAN_ASSIGN_OR_RETURN(
      address.address,
      StartCoordinator(options.coordinator, transport, coordinator));
  ServiceHooks hooks{.drains_with_coordinator = true};
  if (coordinator != nullptr) {
    std::fprintf(stderr, "coordinator listens on %s\n",
                 coordinator->address().c_str());
    hooks.on_drain = [&coordinator] { coordinator->Drain(); };
  }
  PORTOLAN_RETURN_IF_ERROR(ServeRank(options.service, address, model, transport,
                                     hooks, interrupted));
  // Every rank has said goodbye before the coordinator goes.
  PORTOLAN_RETURN_IF_ERROR(
      AgreeOnStatus(transport, absl::OkStatus(), kStartTimeout));
  if (coordinator != nullptr && !coordinator->WaitDrained(kLastStreams)) {
    interrupted = true;
  }
  return absl::OkStatus();
}

absl::StatusOr<int> RunServe(ServeOptions options) {
  options.coordinator.has_own_ranks = true;
  // Requests that run can neither be kept nor end, so there is nothing to
  // drain.
  options.coordinator.on_broken = [](const absl::Status& why) {
    std::_Exit(Report(BrokenDatabase(why)));
  };
  ServiceOptions& service = options.service;
  service.job.drains = true;
  service.job.shares_history = true;
  service.Complete();
  PORTOLAN_RETURN_IF_ERROR(service.Validate());
  PORTOLAN_RETURN_IF_ERROR(options.coordinator.Validate());
  PORTOLAN_ASSIGN_OR_RETURN(const CoordinatorAddress address,
                            OwnAddress(options));
  const std::unique_ptr<EndTimer> timer =
      CatchTerminationOfThreads(service.job);
  std::atomic<bool> interrupted = false;
  PORTOLAN_RETURN_IF_ERROR(
      RunJob(service.job, [&](const Model& model, RunWorld run_world) {
        return run_world([&](Transport& transport) {
          return RunServeRank(options, address, model, transport, interrupted);
        });
      }));
  return interrupted ? kExitRestart : kExitDone;
}

}  // namespace

void AddServeCommand(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* command = app.add_subcommand(
      "serve", "Serve a model: the ranks of a job and their coordinator");
  AddServiceOptions(*command, options->service);
  AddCoordinatorOptions(*command, options->coordinator);
  command->get_option("--data-dir")->required();
  command->callback([options, &exit_code] {
    const absl::StatusOr<int> code = RunServe(*options);
    exit_code = code.ok() ? *code : Report(code.status());
  });
}

void AddWorkerCommand(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<ServiceOptions>();
  CLI::App* command = app.add_subcommand(
      "worker", "Serve the requests of a coordinator with the ranks of a job");
  AddServiceOptions(*command, *options);
  AddCoordinatorAddress(*command, *options);
  command->callback([options, &exit_code] {
    const absl::StatusOr<int> code = RunWorker(*options);
    exit_code = code.ok() ? *code : Report(code.status());
  });
}

}  // namespace portolan
