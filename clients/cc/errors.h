#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/support/status.h"

namespace portolan {

// The status of a call as ours, with what the user can do about it where that
// is known. `coordinator` is the address that was called.
absl::Status ToStatus(const grpc::Status& status, std::string_view coordinator);

// What the server asked to wait before a retry (google.rpc.RetryInfo in the
// details). Absent if it said nothing, or something malformed.
std::optional<absl::Duration> RetryDelay(const grpc::Status& status);

// Whether the same call may succeed later: UNAVAILABLE, RESOURCE_EXHAUSTED.
bool IsRetryable(const grpc::Status& status);

}  // namespace portolan
