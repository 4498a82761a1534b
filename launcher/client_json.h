#pragma once

#include <string>

#include "proto/inference.pb.h"

namespace portolan {

// "queued", "running", "done", "failed", "cancelled".
std::string StateText(v1::RequestState state);

// One JSON object each, without a line break; field names as in
// proto/inference.proto, times in seconds since 1970.
std::string ToJson(const v1::RequestInfo& info);
std::string ToJson(const v1::SubmitResponse& response);
std::string ToJson(const v1::Stats& stats);

}  // namespace portolan
