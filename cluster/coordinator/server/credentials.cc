#include "cluster/coordinator/server/credentials.h"

#include <fstream>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

absl::StatusOr<std::string> ReadFile(const char* flag,
                                     const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)),
                   std::istreambuf_iterator<char>());
  if (!file) {
    return absl::NotFoundError(absl::StrCat("cannot read ", flag, " ", path));
  }
  return text;
}

absl::StatusOr<std::string> ReadPem(const char* flag, const std::string& path) {
  PORTOLAN_ASSIGN_OR_RETURN(std::string text, ReadFile(flag, path));
  if (!absl::StrContains(text, "-----BEGIN ")) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " ", path, " is no PEM file"));
  }
  return text;
}

}  // namespace

absl::Status SecurityOptions::Validate(const std::string& listen) const {
  if (tls_cert.empty() != tls_key.empty()) {
    return absl::InvalidArgumentError(
        "--tls-cert and --tls-key go together; give both or none");
  }
  if (tls_cert.empty() && !tls_client_ca.empty()) {
    return absl::InvalidArgumentError(
        "--tls-client-ca needs --tls-cert and --tls-key");
  }
  if (tls_client_ca.empty() && !worker_subject.empty()) {
    return absl::InvalidArgumentError("--worker-subject needs --tls-client-ca");
  }
  const bool known_callers = !token_file.empty() || !tls_client_ca.empty();
  if (IsLoopback(listen) || insecure || (!tls_cert.empty() && known_callers)) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "--listen ", listen,
      " can be reached from other machines, and anybody could use it; give "
      "--tls-cert and --tls-key, and --token-file or --tls-client-ca, or say "
      "--insecure"));
}

absl::Status SecurityOptions::ValidateHttp(const std::string& http) const {
  // The server would take a list, of which only the first was looked at.
  if (absl::StrContains(http, ',')) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--http ", http, ": give one HOST:PORT (port 0: any free one)"));
  }
  if (http.empty() || IsLoopback(http) || insecure) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "--http ", http,
      " can be reached from other machines, and it has neither TLS nor tokens; "
      "give 127.0.0.1:PORT, or say --insecure"));
}

absl::StatusOr<Security> LoadSecurity(const SecurityOptions& options) {
  Security security;
  if (!options.token_file.empty()) {
    PORTOLAN_ASSIGN_OR_RETURN(const std::string text,
                              ReadFile("--token-file", options.token_file));
    PORTOLAN_ASSIGN_OR_RETURN(security.rules.tokens,
                              AccessList::Parse(options.token_file, text));
  }
  if (options.tls_cert.empty()) {
    security.credentials = grpc::InsecureServerCredentials();
    return security;
  }
  grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
  PORTOLAN_ASSIGN_OR_RETURN(pair.cert_chain,
                            ReadPem("--tls-cert", options.tls_cert));
  PORTOLAN_ASSIGN_OR_RETURN(pair.private_key,
                            ReadPem("--tls-key", options.tls_key));
  security.rules.certificates = !options.tls_client_ca.empty();
  security.rules.worker_subject = options.worker_subject;
  // Clients may come without a certificate; one that is shown must be good.
  grpc::SslServerCredentialsOptions ssl(
      security.rules.certificates
          ? GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY
          : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  ssl.pem_key_cert_pairs.push_back(std::move(pair));
  if (security.rules.certificates) {
    PORTOLAN_ASSIGN_OR_RETURN(
        ssl.pem_root_certs, ReadPem("--tls-client-ca", options.tls_client_ca));
  }
  security.credentials = grpc::SslServerCredentials(ssl);
  return security;
}

}  // namespace portolan
