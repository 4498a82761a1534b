#include "runtime/agent/channel.h"

#include <grpcpp/grpcpp.h>

#include "absl/strings/str_cat.h"

namespace portolan {

std::shared_ptr<grpc::Channel> MakeChannel(const CoordinatorAddress& address) {
  grpc::ChannelArguments arguments;
  // A cut link is noticed within three seconds; the coordinator allows a ping a
  // second.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 2000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 1000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
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
