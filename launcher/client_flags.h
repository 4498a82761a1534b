#pragma once

#include <string>

#include "CLI/App.hpp"
#include "absl/status/statusor.h"
#include "clients/cc/client.h"
#include "clients/cc/connection.h"
#include "proto/inference.pb.h"

namespace portolan {

// How to reach the coordinator, and for how long to try.
struct ClientFlags {
  ConnectionOptions connection;
  double retry_for_s = 60;
  double wait_s = 0;
};

// What is asked for.
struct RequestFlags {
  std::string prompt;
  v1::GenerateRequest request;
  double timeout_s = 0;  // 0: none
};

void AddConnectionFlags(CLI::App& command, ConnectionOptions& options);
void AddClientFlags(CLI::App& command, ClientFlags& flags);
void AddRequestFlags(CLI::App& command, RequestFlags& flags);

// A client that says on stderr when it has to wait; see Client.
absl::StatusOr<std::unique_ptr<Client>> MakeClient(const ClientFlags& flags,
                                                   Interruption& interruption);

// The request with its prompt; "-" reads standard input.
absl::StatusOr<v1::GenerateRequest> MakeRequest(const RequestFlags& flags);

}  // namespace portolan
