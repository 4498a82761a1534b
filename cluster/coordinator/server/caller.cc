#include "cluster/coordinator/server/caller.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cluster/coordinator/call_headers.h"

namespace portolan {
namespace {

// "ipv4:127.0.0.1:4711" without the port, which differs between connections.
std::string AddressOf(const std::string& peer) {
  if (peer.rfind("ipv", 0) != 0) return peer;
  return peer.substr(0, peer.rfind(':'));
}

std::string Metadata(const grpc::ServerContextBase& context,
                     std::string_view key) {
  const auto& all = context.client_metadata();
  const auto found = all.find(grpc::string_ref(key.data(), key.size()));
  if (found == all.end()) return "";
  return std::string(found->second.data(), found->second.size());
}

// Of the client's certificate, if it showed one that was verified.
std::string SubjectOf(const grpc::ServerContextBase& context) {
  const auto auth = context.auth_context();
  if (auth == nullptr || !auth->IsPeerAuthenticated()) return "";
  for (const char* property : {"x509_subject", "x509_common_name"}) {
    const auto values = auth->FindPropertyValues(property);
    if (!values.empty()) {
      return std::string(values.front().data(), values.front().size());
    }
  }
  return "";
}

}  // namespace

absl::StatusOr<Caller> Gate::Enter(grpc::ServerContextBase& context,
                                   ServiceKind service) const {
  const Credentials credentials{
      .authorization = Metadata(context, "authorization"),
      .subject = SubjectOf(context),
      .address = AddressOf(context.peer())};
  absl::StatusOr<Identity> identity = Admit(rules_, service, credentials);
  if (!identity.ok()) {
    telemetry_.Denied(credentials.address, identity.status());
    return std::move(identity).status();
  }
  Caller caller;
  caller.client = identity->name;
  caller.sees_all = identity->sees_all;
  caller.request_id = SoundRequestId(Metadata(context, "x-request-id"));
  caller.traceparent = SoundTraceparent(Metadata(context, "traceparent"));
  const absl::Time deadline = absl::FromChrono(context.deadline());
  if (!caller.request_id.empty()) {
    context.AddInitialMetadata("x-request-id", caller.request_id);
  }
  // gRPC says "none" with a time far away.
  const absl::Duration left = deadline - absl::Now();
  if (left < absl::Hours(24 * 365)) caller.time_left = left;
  return caller;
}

absl::Status Gate::CheckLength(const grpc::ServerContextBase& context,
                               ServiceKind service,
                               const grpc::ByteBuffer& bytes) const {
  const size_t most = service == ServiceKind::kControl
                          ? std::max(max_message_bytes_, kRankMessageBytes)
                          : max_message_bytes_;
  if (bytes.Length() <= most) return absl::OkStatus();
  absl::Status status = absl::ResourceExhaustedError(absl::StrCat(
      "the message is longer than ", most, " bytes (--max-message-bytes)"));
  telemetry_.Refused(AddressOf(context.peer()), "oversized message",
                     std::string(status.message()));
  return status;
}

}  // namespace portolan
