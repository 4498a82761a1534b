#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "comm/agreement.h"
#include "comm/transport.h"
#include "launcher/generate.h"
#include "launcher/job.h"
#include "runtime/serving/request.h"

namespace portolan {

// What ranks that are started each for itself must have in common.

// A prompt with every question about it answered.
struct PreparedPrompt {
  std::string id;
  Request request;
  std::vector<std::string> stops;
};

// The list of prompts, of which each rank takes every so many-th, what they ask
// for, and what rank 0 does with what the others send. Collective.
// Errors: as Agree().
absl::Status AgreeOnJob(const GenerateOptions& options, const Model& model,
                        const std::vector<PreparedPrompt>& prompts,
                        Transport& transport);

// How ranks compute and what they learn. Collective, before they load experts.
// Errors: as Agree().
absl::Status AgreeOnFlags(const JobOptions& options, const Model& model,
                          Transport& transport);

// Of the flags that make up the numerics: "bf16, bf16, bf16".
std::string NumericsText(const JobOptions& options);

}  // namespace portolan
