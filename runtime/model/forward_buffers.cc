#include "runtime/model/forward_buffers.h"

#include <numeric>

#include "runtime/base/status_macros.h"

namespace portolan {

absl::Status ForwardBuffers::Allocate(const ForwardPass::Options& options,
                                      const ModelConfig& config,
                                      int32_t kv_pages, bool looks_ahead) {
  const int64_t max_tokens = options.max_tokens;
  const int64_t max_logits = options.max_logit_rows;
  const ActivationDtype dtype = options.activations;
  const int64_t q_cols = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_cols = int64_t{config.num_kv_heads} * config.head_dim;
  const auto chosen = static_cast<size_t>(max_tokens * config.top_k);
  tokens.reserve(static_cast<size_t>(max_tokens));
  positions.reserve(static_cast<size_t>(max_tokens));
  pages.reserve(static_cast<size_t>(kv_pages));
  all_rows.resize(static_cast<size_t>(max_tokens));
  std::iota(all_rows.begin(), all_rows.end(), 0);
  experts.resize(chosen);
  weights.resize(chosen);
  for (FloatRows* rows : {&hidden, &delta, &normed}) {
    PORTOLAN_RETURN_IF_ERROR(rows->Allocate(max_tokens, config.hidden));
  }
  PORTOLAN_RETURN_IF_ERROR(q.Allocate(max_tokens, q_cols));
  PORTOLAN_RETURN_IF_ERROR(k.Allocate(max_tokens, kv_cols));
  PORTOLAN_RETURN_IF_ERROR(v.Allocate(max_tokens, kv_cols));
  PORTOLAN_RETURN_IF_ERROR(
      probabilities.Allocate(max_tokens, config.num_experts));
  if (looks_ahead) {
    PORTOLAN_RETURN_IF_ERROR(
        look_ahead_normed.Allocate(max_tokens, config.hidden));
    PORTOLAN_RETURN_IF_ERROR(
        look_ahead_act.Allocate(max_tokens, config.hidden, dtype));
    for (FloatRows& rows : look_ahead) {
      PORTOLAN_RETURN_IF_ERROR(rows.Allocate(max_tokens, config.num_experts));
    }
  }
  PORTOLAN_RETURN_IF_ERROR(
      normed_act.Allocate(max_tokens, config.hidden, dtype));
  PORTOLAN_RETURN_IF_ERROR(
      gate_input.Allocate(max_tokens, config.hidden, ActivationDtype::kF32));
  PORTOLAN_RETURN_IF_ERROR(q_act.Allocate(max_tokens, q_cols, dtype));
  PORTOLAN_RETURN_IF_ERROR(attended.Allocate(max_tokens, q_cols, dtype));
  PORTOLAN_RETURN_IF_ERROR(logit_hidden.Allocate(max_logits, config.hidden));
  PORTOLAN_RETURN_IF_ERROR(
      logit_act.Allocate(max_logits, config.hidden, dtype));
  return logits.Allocate(max_logits, config.vocab_size);
}

}  // namespace portolan
