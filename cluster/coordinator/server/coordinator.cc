#include "cluster/coordinator/server/coordinator.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <future>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cluster/coordinator/server/data_dir.h"
#include "cluster/coordinator/server/door.h"
#include "cluster/coordinator/server/expert_maps_service.h"
#include "cluster/coordinator/server/grpc_log.h"
#include "cluster/coordinator/server/grpc_status.h"
#include "cluster/coordinator/server/http_server.h"
#include "cluster/coordinator/server/services.h"
#include "cluster/coordinator/status_page.h"
#include "proto/inference.grpc.pb.h"
#include "runtime/base/mutex.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

// A peer that vanished without a word is noticed within this time.
constexpr int kKeepaliveMs = 10'000;
constexpr int kKeepaliveTimeoutMs = 5'000;
constexpr int kMinPingMs = 1'000;
// A connection that says nothing is closed after it.
constexpr int kHandshakeMs = 10'000;
// On one connection, beyond those of a client's limit: calls that end at once,
// and those that the limit refuses. What exceeds it waits in the client.
constexpr int64_t kMoreCalls = 1000;

constexpr int kMinMessageBytes = 1024;

class RunningCoordinator final : public Coordinator {
 public:
  // Members are made in this order and go in the other one.
  RunningCoordinator(DataDir dir, std::unique_ptr<Telemetry> telemetry,
                     std::unique_ptr<RequestHub> hub,
                     std::unique_ptr<ExpertMapsService> expert_maps,
                     Security security, const CoordinatorOptions& options,
                     const std::vector<MakeService>& further_services);
  ~RunningCoordinator() override;

  absl::Status Listen(const CoordinatorOptions& options);

  const std::string& address() const override { return address_; }
  const std::string& http_address() const override { return http_address_; }
  void Drain() override ABSL_LOCKS_EXCLUDED(health_mu_);
  bool WaitDrained(absl::Duration grace) override {
    return hub_->WaitDrained(grace);
  }

 private:
  absl::Status OpenDoor(const CoordinatorOptions& options);
  absl::Status ListenHttp(const std::string& address);
  void HealthChanged(RequestHub::Health health, const absl::Status& why)
      ABSL_LOCKS_EXCLUDED(health_mu_);
  void TellHealth() ABSL_EXCLUSIVE_LOCKS_REQUIRED(health_mu_);
  HttpAnswer Health() ABSL_LOCKS_EXCLUDED(health_mu_);
  HttpAnswer Page() const;
  std::string Metrics() const;
  void AddExpertMaps(v1::Stats& stats) const;
  absl::Status WriteEndpoint() const;

  const DataDir dir_;
  const std::unique_ptr<Telemetry> telemetry_;
  const std::unique_ptr<RequestHub> hub_;
  const GrpcLogTap grpc_log_;
  const Security security_;
  const Gate gate_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  ExpertMapsService* expert_maps_ = nullptr;  // one of the services
  std::string address_;
  std::string http_address_;
  const bool has_own_ranks_;
  const std::function<void(const absl::Status&)> on_broken_;
  Mutex health_mu_;
  RequestHub::Health health_ ABSL_GUARDED_BY(health_mu_) =
      RequestHub::Health::kNoRank;
  bool draining_ ABSL_GUARDED_BY(health_mu_) = false;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  std::unique_ptr<Door> door_;
  std::unique_ptr<HttpServer> http_;
};

RunningCoordinator::RunningCoordinator(
    DataDir dir, std::unique_ptr<Telemetry> telemetry,
    std::unique_ptr<RequestHub> hub,
    std::unique_ptr<ExpertMapsService> expert_maps, Security security,
    const CoordinatorOptions& options,
    const std::vector<MakeService>& further_services)
    : dir_(std::move(dir)),
      telemetry_(std::move(telemetry)),
      hub_(std::move(hub)),
      grpc_log_(*telemetry_),
      security_(std::move(security)),
      gate_(security_.rules, *telemetry_, options.max_message_bytes),
      has_own_ranks_(options.has_own_ranks),
      on_broken_(options.on_broken) {
  services_.push_back(MakeInferenceService(
      *hub_, gate_, [this](v1::Stats& stats) { AddExpertMaps(stats); }));
  services_.push_back(MakeControlService(*hub_, gate_));
  expert_maps->SetAuthorize([this](grpc::ServerContextBase& context,
                                   const grpc::ByteBuffer& message) {
    const auto caller = gate_.Enter(context, ServiceKind::kControl);
    return ToGrpc(
        caller.ok() ? gate_.CheckLength(context, ServiceKind::kControl, message)
                    : caller.status());
  });
  expert_maps_ = expert_maps.get();
  services_.push_back(std::move(expert_maps));
  for (const MakeService& make : further_services) {
    services_.push_back(make(gate_));
  }
}

// The host stays as it was given, the port is the bound one.
std::string BoundAddress(const std::string& listen, int port) {
  return absl::StrCat(listen.substr(0, listen.rfind(':')), ":", port);
}

absl::Status RunningCoordinator::Listen(const CoordinatorOptions& options) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  // Files of this machine need no door.
  const bool is_file = absl::StartsWith(options.listen, "unix:");
  if (is_file) {
    builder.AddListeningPort(options.listen, security_.credentials);
  } else {
    acceptor_ = builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
        security_.credentials);
  }
  builder.SetMaxReceiveMessageSize(-1);  // Gate::Read() looks at it
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                             kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingMs);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                             kHandshakeMs);
  if (const int64_t streams = options.hub.max_client_streams; streams > 0) {
    builder.AddChannelArgument(
        GRPC_ARG_MAX_CONCURRENT_STREAMS,
        static_cast<int>(std::min<int64_t>(streams + kMoreCalls, INT32_MAX)));
  }
  for (const auto& service : services_) builder.RegisterService(service.get());
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) {
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", options.listen,
        "; is it in use, or no address of this machine? (--listen)"));
  }
  // gRPC begins with SERVING.
  HealthChanged(RequestHub::Health::kNoRank, absl::OkStatus());
  hub_->WatchHealth([this](RequestHub::Health health, const absl::Status& why) {
    HealthChanged(health, why);
  });
  address_ = options.listen;
  if (!is_file) PORTOLAN_RETURN_IF_ERROR(OpenDoor(options));
  if (!options.http.empty()) {
    PORTOLAN_RETURN_IF_ERROR(ListenHttp(options.http));
  }
  return WriteEndpoint();
}

absl::Status RunningCoordinator::OpenDoor(const CoordinatorOptions& options) {
  PORTOLAN_ASSIGN_OR_RETURN(
      door_, Door::Open(
                 {.listen = options.listen,
                  .tls = !options.security.tls_cert.empty(),
                  .patience = absl::Milliseconds(kHandshakeMs)},
                 [this](int listener, Socket connection) {
                   grpc::experimental::ExternalConnectionAcceptor::
                       NewConnectionParameters parameters;
                   parameters.listener_fd = listener;
                   parameters.fd = connection.Release();
                   acceptor_->HandleNewConnection(&parameters);
                 },
                 [this](std::string_view address, std::string_view cause,
                        std::string_view message) {
                   telemetry_->Refused(address, cause, message);
                 }));
  address_ = BoundAddress(options.listen, door_->port());
  return absl::OkStatus();
}

absl::Status RunningCoordinator::ListenHttp(const std::string& address) {
  PORTOLAN_ASSIGN_OR_RETURN(
      http_, HttpServer::Start(
                 address, {{"/metrics$",
                            [this] { return HttpAnswer{.text = Metrics()}; }},
                           {"/healthz$", [this] { return Health(); }},
                           {"/$", [this] { return Page(); }}}));
  http_address_ = BoundAddress(address, http_->port());
  return absl::OkStatus();
}

std::string RunningCoordinator::Metrics() const {
  for (const auto& store : expert_maps_->stats().stores) {
    telemetry_->ExpertMaps(store.store.fingerprint, store.store.format,
                           static_cast<int64_t>(store.rows));
  }
  return telemetry_->MetricsText();
}

void RunningCoordinator::AddExpertMaps(v1::Stats& stats) const {
  const ExpertMapsService::Stats maps = expert_maps_->stats();
  for (v1::ModelStats& model : *stats.mutable_models()) {
    for (const auto& store : maps.stores) {
      if (store.store.fingerprint != model.fingerprint()) continue;
      model.set_expert_maps(model.expert_maps() + store.rows);
      model.set_expert_map_bytes(model.expert_map_bytes() + store.bytes);
      model.set_expert_map_hits(model.expert_map_hits() + store.useful);
    }
  }
}

void RunningCoordinator::HealthChanged(RequestHub::Health health,
                                       const absl::Status& why) {
  {
    MutexLock lock(health_mu_);
    health_ = health;
    TellHealth();
  }
  if (health == RequestHub::Health::kBroken) on_broken_(why);
}

void RunningCoordinator::TellHealth() {
  auto* service = server_->GetHealthCheckService();
  if (service == nullptr) return;
  const bool served = !draining_ && health_ == RequestHub::Health::kServed;
  const bool open = !draining_ && health_ != RequestHub::Health::kBroken;
  service->SetServingStatus("", has_own_ranks_ ? served : open);
  service->SetServingStatus(v1::Inference::service_full_name(), served);
}

HttpAnswer RunningCoordinator::Health() {
  MutexLock lock(health_mu_);
  using State = RequestHub::Health;
  if (draining_) return {.status = 503, .text = "draining\n"};
  if (health_ == State::kBroken) {
    return {.status = 503, .text = "the database takes no writes\n"};
  }
  if (health_ == State::kNoRank && has_own_ranks_) {
    return {.status = 503, .text = "no rank is attached\n"};
  }
  return {.text = "ok\n"};
}

HttpAnswer RunningCoordinator::Page() const {
  // The hub answers within a turn, or not at all if it is stopping; then the
  // promise is broken.
  auto promise = std::make_shared<std::promise<v1::Stats>>();
  std::future<v1::Stats> answer = promise->get_future();
  hub_->GetStats([promise](absl::StatusOr<v1::Stats> stats) {
    promise->set_value(stats.value_or(v1::Stats()));
  });
  if (answer.wait_for(std::chrono::seconds(2)) != std::future_status::ready) {
    return {.status = 503, .text = "busy or stopping\n"};
  }
  return {.text = StatusPage(answer.get())};
}

absl::Status RunningCoordinator::WriteEndpoint() const {
  nlohmann::ordered_json json;
  json["address"] = address_;
  if (!http_address_.empty()) json["http"] = http_address_;
  json["pid"] = getpid();
  return dir_.WriteFile("endpoint.json", json.dump() + "\n");
}

void RunningCoordinator::Drain() {
  {
    MutexLock lock(health_mu_);
    draining_ = true;
    TellHealth();
  }
  hub_->Drain();
}

RunningCoordinator::~RunningCoordinator() {
  http_.reset();
  door_.reset();
  if (server_ != nullptr) {
    if (auto* health = server_->GetHealthCheckService(); health != nullptr) {
      health->Shutdown();
    }
    hub_->EndStreams();
    expert_maps_->EndStreams();
    server_->Shutdown(std::chrono::system_clock::now() +
                      std::chrono::seconds(1));
    server_->Wait();
  }
  hub_->Stop();
}

}  // namespace

absl::Status CoordinatorOptions::Validate() const {
  if (!absl::StartsWith(listen, "unix:") &&
      listen.rfind(':') == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--listen ", listen, ": give HOST:PORT (port 0: any free one)"));
  }
  if (hub.max_client_streams < 0) {
    return absl::InvalidArgumentError("--client-streams must be at least 0");
  }
  if (max_message_bytes < kMinMessageBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-message-bytes must be at least ", kMinMessageBytes,
                     ", or no request fits"));
  }
  if (hub.limits.max_prompt_tokens < 1) {
    return absl::InvalidArgumentError("--max-prompt-tokens must be at least 1");
  }
  PORTOLAN_RETURN_IF_ERROR(security.Validate(listen));
  PORTOLAN_RETURN_IF_ERROR(security.ValidateHttp(http));
  return hub.queue.Validate();
}

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Start(
    const CoordinatorOptions& options,
    const std::vector<MakeService>& further_services) {
  PORTOLAN_RETURN_IF_ERROR(options.Validate());
  PORTOLAN_ASSIGN_OR_RETURN(Security security, LoadSecurity(options.security));
  PORTOLAN_ASSIGN_OR_RETURN(DataDir dir, DataDir::Lock(options.data_dir));
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<EventLog> log,
                            EventLog::Open(options.log_file));
  auto telemetry = std::make_unique<Telemetry>(std::move(log));
  StoreOptions store_options = options.store;
  store_options.path = dir.File("requests.sqlite");
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<RequestStore> store,
                            RequestStore::Open(store_options));
  const absl::Time wall_now =
      options.wall_now == absl::InfinitePast() ? absl::Now() : options.wall_now;
  PORTOLAN_ASSIGN_OR_RETURN(
      std::unique_ptr<RequestHub> hub,
      RequestHub::Start(options.hub, wall_now, std::move(store), *telemetry));
  std::string notice;
  PORTOLAN_ASSIGN_OR_RETURN(
      std::unique_ptr<ExpertMapsService> expert_maps,
      ExpertMapsService::Create({.store = options.expert_maps,
                                 .database = dir.File("history.sqlite")},
                                notice));
  if (!notice.empty()) std::fprintf(stderr, "notice: %s\n", notice.c_str());
  auto coordinator = std::make_unique<RunningCoordinator>(
      std::move(dir), std::move(telemetry), std::move(hub),
      std::move(expert_maps), std::move(security), options, further_services);
  PORTOLAN_RETURN_IF_ERROR(coordinator->Listen(options));
  return coordinator;
}

}  // namespace portolan
