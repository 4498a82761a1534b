#include "runtime/agent/channel.h"

#include <grpcpp/grpcpp.h>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace portolan {
namespace {

const char* RemedyForUnauthenticated(const CoordinatorAddress& address) {
  if (!address.token.empty()) {
    return "; --token-file holds no token that it knows";
  }
  if (!address.cert_pem.empty()) {
    return "; it does not take --tls-cert, or wants a --token-file";
  }
  return "; give what it asks for: --token-file, or --tls-cert and --tls-key";
}

// The words are those of the TLS library below gRPC: OpenSSL's, or BoringSSL's
// with capitals and underscores.
absl::Status ExplainUnavailable(const absl::Status& status,
                                const CoordinatorAddress& address) {
  const absl::string_view message = status.message();
  const std::string words =
      absl::StrReplaceAll(absl::AsciiStrToLower(message), {{"_", " "}});
  if (absl::StrContains(words, "certificate verify failed") ||
      absl::StrContains(words, "hostname verification check failed") ||
      absl::StrContains(words, "peer name ")) {
    return absl::FailedPreconditionError(absl::StrCat(
        "its certificate is not one of an authority in ",
        address.ca_pem.empty() ? "the system's list (--tls-ca names another)"
                               : "--tls-ca",
        ", or expired, or of another name than ",
        address.tls_name.empty() ? address.address : address.tls_name,
        " (--tls-name): ", message));
  }
  if (absl::StrContains(words, "wrong version number")) {
    return absl::FailedPreconditionError(
        "it does not speak TLS; leave out --tls and the other flags of TLS, or "
        "give it --tls-cert and --tls-key");
  }
  if (absl::StrContains(words, "alert unknown ca") ||
      absl::StrContains(words, "certificate expired")) {
    return absl::FailedPreconditionError(
        absl::StrCat("it does not take the certificate in --tls-cert, which "
                     "its --tls-client-ca has not signed or which expired: ",
                     message));
  }
  return absl::UnavailableError(absl::StrCat(
      message, address.tls ? "; is it running, and does it take --tls-cert?"
                           : "; is it running, and without TLS (else --tls)?"));
}

}  // namespace

bool IsHangUp(const absl::Status& status) {
  return absl::IsUnavailable(status) &&
         absl::StrContains(status.message(), "Socket closed");
}

absl::Status WithRemedy(const absl::Status& status,
                        const CoordinatorAddress& address) {
  switch (status.code()) {
    case absl::StatusCode::kUnauthenticated:
      return absl::UnauthenticatedError(
          absl::StrCat(status.message(), RemedyForUnauthenticated(address)));
    case absl::StatusCode::kPermissionDenied:
      return absl::PermissionDeniedError(
          absl::StrCat(status.message(),
                       "; --token-file must hold a token with the role "
                       "worker"));
    case absl::StatusCode::kUnavailable:
      return ExplainUnavailable(status, address);
    default:
      return status;
  }
}

std::shared_ptr<grpc::Channel> MakeChannel(const CoordinatorAddress& address) {
  grpc::ChannelArguments arguments;
  // A cut link is noticed within three seconds; the coordinator allows a ping a
  // second.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 2000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 1000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // The time that one attempt to connect may take.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetUserAgentPrefix("portolan-rank");
  std::shared_ptr<grpc::ChannelCredentials> credentials =
      grpc::InsecureChannelCredentials();
  if (address.tls) {
    grpc::SslCredentialsOptions ssl;
    ssl.pem_root_certs = address.ca_pem;
    ssl.pem_cert_chain = address.cert_pem;
    ssl.pem_private_key = address.key_pem;
    credentials = grpc::SslCredentials(ssl);
    if (!address.tls_name.empty()) {
      arguments.SetSslTargetNameOverride(address.tls_name);
    }
  }
  return grpc::CreateCustomChannel(address.address, credentials, arguments);
}

void AddToken(const CoordinatorAddress& address, grpc::ClientContext& context) {
  if (address.token.empty()) return;
  context.AddMetadata("authorization", absl::StrCat("Bearer ", address.token));
}

}  // namespace portolan
