#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"

namespace portolan {

struct ConnectionOptions {
  std::string coordinator = "localhost:50051";  // HOST:PORT
  bool tls = false;                             // implied by any of the next
  std::string tls_ca;    // PEM file; empty: the system's authorities
  std::string tls_cert;  // PEM files of a client certificate; both or none
  std::string tls_key;
  std::string tls_server_name;  // if the certificate names another host
  std::string token_file;       // its first line is the bearer token
  bool insecure = false;        // a token may travel in the clear

  bool uses_tls() const {
    return tls || !tls_ca.empty() || !tls_cert.empty() ||
           !tls_server_name.empty();
  }
};

// A channel to the coordinator and what goes with each call on it.
//
// Thread-safe.
class Connection {
 public:
  // Connects when the first call is made.
  // Errors: kNotFound, kInvalidArgument naming flag and file;
  // kFailedPrecondition if the token would travel in the clear to another host.
  static absl::StatusOr<Connection> Open(const ConnectionOptions& options);

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  const std::string& coordinator() const { return coordinator_; }

  // Adds the token to a call.
  void Prepare(grpc::ClientContext& context) const;

 private:
  Connection(std::shared_ptr<grpc::Channel> channel, std::string coordinator,
             std::string token);

  std::shared_ptr<grpc::Channel> channel_;
  std::string coordinator_;
  std::string authorization_;
};

}  // namespace portolan
