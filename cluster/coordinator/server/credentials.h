#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cluster/coordinator/access.h"

namespace portolan {

struct SecurityOptions {
  std::string tls_cert = {};  // PEM files
  std::string tls_key = {};
  std::string tls_client_ca = {};   // whose certificates ranks may show
  std::string worker_subject = {};  // see AccessRules; empty: all of them
  std::string token_file = {};      // see AccessList::Parse()
  // Listen beyond this machine without TLS and tokens or certificates.
  bool insecure = false;

  // Errors: kInvalidArgument, kFailedPrecondition (an open door), both naming
  // the flag.
  absl::Status Validate(const std::string& listen) const;
  // The same for --http, where nobody shows who it is: a loopback address, or
  // --insecure.
  absl::Status ValidateHttp(const std::string& http) const;
};

struct Security {
  std::shared_ptr<grpc::ServerCredentials> credentials;
  AccessRules rules;
};

// Reads certificates and tokens.
// Errors: kInvalidArgument, kNotFound naming flag and file.
absl::StatusOr<Security> LoadSecurity(const SecurityOptions& options);

}  // namespace portolan
