#pragma once

#include <span>

#include "absl/status/status.h"
#include "proto/control.pb.h"
#include "runtime/base/histogram.h"
#include "runtime/model/logprobs.h"
#include "runtime/serving/request.h"
#include "runtime/serving/text_request.h"

namespace portolan {

// Between the messages of proto/ and what the engine knows.

// A field that is absent has the default that inference.proto gives it.
TextRequest FromAssign(const v1::Assign& assign);

// What a request that says nothing gets.
v1::SamplingParams ToProto(const TextRequest& defaults);

v1::TokenLogprobs ToProto(std::span<const TokenLogprob> logprobs);

v1::Finish ToProto(const SequenceEnd& end, int64_t prompt_tokens);

v1::Histogram ToProto(const Histogram& histogram);

// The end of a request that cannot be served.
v1::Finish ErrorFinish(const absl::Status& status);

}  // namespace portolan
