#include "clients/cc/connection.h"

#include <fstream>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

absl::StatusOr<std::string> ReadFile(absl::string_view flag,
                                     const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  if (!file || text.str().empty()) {
    return absl::NotFoundError(
        absl::StrCat(flag, ": cannot read ", path, ", or it is empty"));
  }
  return text.str();
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  if (path.empty()) return std::string();
  PORTOLAN_ASSIGN_OR_RETURN(const std::string text,
                            ReadFile("--token-file", path));
  std::string token = text.substr(0, text.find_first_of("\r\n"));
  for (const char c : token) {
    // Anything else would end the metadata of the call, or the call.
    if (c <= ' ' || c > '~') {
      return absl::InvalidArgumentError(
          absl::StrCat("--token-file: the first line of ", path,
                       " is not one word of printable ASCII"));
    }
  }
  if (token.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--token-file: the first line of ", path, " is empty"));
  }
  return token;
}

bool IsLoopback(absl::string_view coordinator) {
  const absl::string_view host = coordinator.substr(0, coordinator.rfind(':'));
  // And no name that only begins so.
  const bool is_address =
      host.find_first_not_of("0123456789.") == absl::string_view::npos;
  return host == "localhost" ||
         (is_address && absl::StartsWith(host, "127.")) ||
         absl::StartsWith(coordinator, "[::1]:") ||
         absl::StartsWith(coordinator, "unix:");
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> Credentials(
    const ConnectionOptions& options) {
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return absl::InvalidArgumentError(
        "--tls-cert and --tls-key go together: give both or none");
  }
  if (!options.uses_tls()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions ssl;
  if (!options.tls_ca.empty()) {
    PORTOLAN_ASSIGN_OR_RETURN(ssl.pem_root_certs,
                              ReadFile("--tls-ca", options.tls_ca));
  }
  if (!options.tls_cert.empty()) {
    PORTOLAN_ASSIGN_OR_RETURN(ssl.pem_cert_chain,
                              ReadFile("--tls-cert", options.tls_cert));
    PORTOLAN_ASSIGN_OR_RETURN(ssl.pem_private_key,
                              ReadFile("--tls-key", options.tls_key));
  }
  return grpc::SslCredentials(ssl);
}

grpc::ChannelArguments Arguments(const ConnectionOptions& options) {
  grpc::ChannelArguments arguments;
  // A restarted coordinator is found within a second, not two minutes.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // The time that one attempt to connect may take.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // A host that vanished is noticed while a stream waits for its next token.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Retries are ours: they know idempotency keys and offsets.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetMaxReceiveMessageSize(64 << 20);
  if (!options.tls_server_name.empty()) {
    arguments.SetSslTargetNameOverride(options.tls_server_name);
  }
  return arguments;
}

}  // namespace

absl::StatusOr<Connection> Connection::Open(const ConnectionOptions& options) {
  PORTOLAN_ASSIGN_OR_RETURN(std::string token, ReadToken(options.token_file));
  if (!token.empty() && !options.uses_tls() && !options.insecure &&
      !IsLoopback(options.coordinator)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--token-file: the token would travel to ", options.coordinator,
        " in the clear; use --tls or --tls-ca FILE (or say --insecure)"));
  }
  PORTOLAN_ASSIGN_OR_RETURN(const auto credentials, Credentials(options));
  return Connection(grpc::CreateCustomChannel(options.coordinator, credentials,
                                              Arguments(options)),
                    options.coordinator, std::move(token));
}

Connection::Connection(std::shared_ptr<grpc::Channel> channel,
                       std::string coordinator, std::string token)
    : channel_(std::move(channel)), coordinator_(std::move(coordinator)) {
  if (!token.empty()) authorization_ = absl::StrCat("Bearer ", token);
}

void Connection::Prepare(grpc::ClientContext& context) const {
  if (!authorization_.empty()) {
    context.AddMetadata("authorization", authorization_);
  }
}

}  // namespace portolan
