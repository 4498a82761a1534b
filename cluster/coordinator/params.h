#pragma once

#include <cstdint>

#include "proto/inference.pb.h"

namespace portolan {

// The parameters in force: the request's, else the job's, else the API's. Every
// field that has a meaning is set; `seed` is the one drawn at admission.
v1::SamplingParams MergeParams(const v1::SamplingParams& request,
                               const v1::SamplingParams& job, uint64_t seed);

// max_tokens where neither request nor job says it.
inline constexpr uint32_t kDefaultMaxTokens = 16;

}  // namespace portolan
