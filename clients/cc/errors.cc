#include "clients/cc/errors.h"

#include "absl/strings/str_cat.h"
#include "proto/rpc_status.pb.h"

namespace portolan {
namespace {

// Longer waits than this are somebody's mistake.
constexpr absl::Duration kLongestDelay = absl::Hours(1);

std::string Unreachable(std::string_view coordinator,
                        const grpc::Status& status) {
  return absl::StrCat(
      "no answer from the coordinator at ",
      absl::string_view(coordinator.data(), coordinator.size()), " (",
      status.error_message(),
      "); is it running, is --coordinator right, and do both sides use TLS or "
      "both not?");
}

std::string Remedy(const grpc::Status& status, std::string_view coordinator) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      // A coordinator that asks to be tried again has said why.
      return RetryDelay(status).has_value() ? status.error_message()
                                            : Unreachable(coordinator, status);
    case grpc::StatusCode::UNAUTHENTICATED:
      return absl::StrCat(status.error_message(),
                          "; give the service's token with --token-file");
    case grpc::StatusCode::PERMISSION_DENIED:
      return absl::StrCat(status.error_message(),
                          "; --token-file holds the token of somebody else");
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return absl::StrCat(status.error_message(),
                          "; a longer --timeout allows more");
    default:
      return status.error_message();
  }
}

}  // namespace

absl::Status ToStatus(const grpc::Status& status,
                      std::string_view coordinator) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      Remedy(status, coordinator));
}

std::optional<absl::Duration> RetryDelay(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return std::nullopt;
  for (const auto& any : details.details()) {
    google::rpc::RetryInfo info;
    if (!any.Is<google::rpc::RetryInfo>() || !any.UnpackTo(&info)) continue;
    const absl::Duration delay = absl::Seconds(info.retry_delay().seconds()) +
                                 absl::Nanoseconds(info.retry_delay().nanos());
    if (delay < absl::ZeroDuration() || delay > kLongestDelay) continue;
    return delay;
  }
  return std::nullopt;
}

bool IsRetryable(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE ||
         status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED;
}

}  // namespace portolan
