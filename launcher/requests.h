#pragma once

#include <cstdint>

#include "launcher/job.h"
#include "launcher/prompts.h"
#include "runtime/serving/text_request.h"

namespace portolan {

// Settles what a prompt leaves open: its own wishes go before those of the
// command line, these before the model's generation_config.json, and this
// before the built-in defaults. Without any wish a text may have `max_tokens`.
TextRequest SettleRequest(const Prompt& prompt,
                          const SamplingWishes& command_line,
                          const ModelConfig& config, int64_t max_tokens);

// `model` must outlive the result.
ModelTerms TermsOf(const Model& model);

}  // namespace portolan
