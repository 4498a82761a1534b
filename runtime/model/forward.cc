#include "runtime/model/forward.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "runtime/base/bf16.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/forward_buffers.h"
#include "runtime/model/gate.h"

namespace portolan {
namespace {

const float* BiasOrNull(const std::vector<float>& bias) {
  return bias.empty() ? nullptr : bias.data();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ForwardPass>> ForwardPass::Create(
    const Options& options, const Parts& parts) {
  std::unique_ptr<ForwardPass> pass(new ForwardPass(options, parts));
  PORTOLAN_RETURN_IF_ERROR(pass->Allocate());
  return pass;
}

ForwardPass::ForwardPass(const Options& options, const Parts& parts)
    : options_(options),
      parts_(parts),
      kv_layout_{.num_kv_heads = parts.config.num_kv_heads,
                 .head_dim = parts.config.head_dim,
                 .dtype = options.activations},
      attention_scale_(1.0f /
                       std::sqrt(static_cast<float>(parts.config.head_dim))),
      buffers_(std::make_unique<ForwardBuffers>()) {
  const ExpertShape dense = DenseMlpShape(parts.config);
  if (dense.intermediate > 0) {
    dense_ffn_ = std::make_unique<ExpertFfn>(
        dense, options.activations, parts.kernels, options.max_tokens,
        /*profile=*/nullptr, parts.weights.format);
  }
}

ForwardPass::~ForwardPass() = default;

void ForwardPass::Begin(std::span<const ForwardSequence> sequences) {
  buffers_->sequences.assign(sequences.begin(), sequences.end());
  Place();
  Embed();
}

absl::StatusOr<MatrixView<const float>> ForwardPass::Run(
    int64_t tokens_of_all_ranks) {
  parts_.moe.BeginStep(tokens_of_all_ranks);
  int32_t moe_layer = 0;
  for (int32_t layer = 0; layer < parts_.config.num_layers; ++layer) {
    Attend(layer);
    if (parts_.config.IsMoeLayer(layer)) {
      PORTOLAN_RETURN_IF_ERROR(RunExperts(layer, moe_layer++));
    } else {
      RunDenseBlock(layer);
    }
  }
  return Logits();
}

int64_t RopePositions(const ModelConfig& config, int32_t kv_pages) {
  return std::min(config.max_position, int64_t{kv_pages} * kPageTokens);
}

int64_t ForwardPass::rope_bytes() const { return rope_->bytes(); }

int64_t ForwardPass::num_tokens() const { return buffers_->num_tokens; }

absl::Status ForwardPass::Allocate() {
  const ModelConfig& config = parts_.config;
  // No sequence is longer than what the KV cache can hold.
  const int64_t positions = RopePositions(config, parts_.kv.num_pages());
  PORTOLAN_ASSIGN_OR_RETURN(
      RopeTable rope,
      RopeTable::Create(RopeFrequencies(config.rope), positions));
  rope_ = std::make_unique<RopeTable>(std::move(rope));
  PORTOLAN_RETURN_IF_ERROR(
      parts_.kernels.ReserveAttention(kv_layout_, config.num_heads, positions));
  return buffers_->Allocate(options_, config, parts_.kv.num_pages(),
                            LookAhead() > 0);
}

int ForwardPass::LookAhead() const {
  return parts_.observer == nullptr ? 0 : parts_.observer->look_ahead();
}

// Lines up the rows of the step: which token, at which position, of whom.
void ForwardPass::Place() {
  ForwardBuffers& b = *buffers_;
  b.tokens.clear();
  b.positions.clear();
  b.attention.clear();
  for (const ForwardSequence& sequence : b.sequences) {
    b.attention.push_back(
        {.first_row = static_cast<int32_t>(b.tokens.size()),
         .num_rows = static_cast<int32_t>(sequence.tokens.size()),
         .first_position = static_cast<int32_t>(sequence.first_position),
         .pages = nullptr});
    int64_t position = sequence.first_position;
    rope_->Reach(position + static_cast<int64_t>(sequence.tokens.size()));
    for (const int32_t token : sequence.tokens) {
      b.positions.push_back(static_cast<int32_t>(position));
      b.tokens.push_back({sequence.id, position++, token});
    }
  }
  b.num_tokens = static_cast<int64_t>(b.tokens.size());
  PORTOLAN_CHECK(b.num_tokens <= options_.max_tokens);
}

void ForwardPass::Embed() {
  ForwardBuffers& b = *buffers_;
  const MatrixView<float> hidden = b.hidden.First(b.num_tokens);
  for (int64_t row = 0; row < b.num_tokens; ++row) {
    const std::span<const Bf16> embedding =
        parts_.weights.Embedding(b.tokens[static_cast<size_t>(row)].token);
    std::transform(embedding.begin(), embedding.end(), hidden.Row(row).begin(),
                   [](Bf16 value) { return ToFloat(value); });
  }
  if (parts_.observer != nullptr) {
    parts_.observer->OnEmbedding(b.tokens, b.hidden.ConstFirst(b.num_tokens));
  }
}

// Adds what the block before left in `delta` to the residual stream, unless
// this is the first block.
void ForwardPass::NormBlockInput(int32_t layer) {
  ForwardBuffers& b = *buffers_;
  const ModelConfig& config = parts_.config;
  const std::span<const float> weight =
      parts_.weights.layers[static_cast<size_t>(layer)].input_norm;
  const ActivationView act = b.normed_act.First(b.num_tokens);
  if (layer == 0) {
    parts_.kernels.RmsNorm(b.hidden.ConstFirst(b.num_tokens), weight,
                           config.rms_eps, act, nullptr);
  } else {
    parts_.kernels.AddRmsNorm(b.hidden.First(b.num_tokens),
                              b.delta.ConstFirst(b.num_tokens), weight,
                              config.rms_eps, act, nullptr);
  }
}

// Leaves the output of the layer's attention in `delta`.
void ForwardPass::Attend(int32_t layer) {
  ForwardBuffers& b = *buffers_;
  const ModelConfig& config = parts_.config;
  const LayerWeights& w = parts_.weights.layers[static_cast<size_t>(layer)];
  Kernels& kernels = parts_.kernels;
  const ProfileScope zone(parts_.profile, Zone::kAttention, layer);
  {
    const ProfileScope inner(parts_.profile, Zone::kQkv, layer);
    NormBlockInput(layer);
    const Kernels::LinearPart parts[] = {
        {w.q, BiasOrNull(w.q_bias), b.q.data(), b.q.cols()},
        {w.k, BiasOrNull(w.k_bias), b.k.data(), b.k.cols()},
        {w.v, BiasOrNull(w.v_bias), b.v.data(), b.v.cols()}};
    kernels.LinearMany(b.normed_act.First(b.num_tokens), parts);
  }
  RotateAndStore(layer);
  const ActivationView attended = b.attended.First(b.num_tokens);
  {
    const ProfileScope inner(parts_.profile, Zone::kScores, layer);
    kernels.Attention(kv_layout_, b.attention, b.q_act.First(b.num_tokens),
                      config.num_heads, attention_scale_, config.sliding_window,
                      attended);
  }
  const ProfileScope inner(parts_.profile, Zone::kAttentionOutput, layer);
  kernels.Linear(attended, w.o, BiasOrNull(w.o_bias), b.delta.data(),
                 b.delta.cols());
}

// Norm and rotation of q and k; k and v go to the KV cache, q to `q_act`.
void ForwardPass::RotateAndStore(int32_t layer) {
  const ProfileScope zone(parts_.profile, Zone::kHeads, layer);
  ForwardBuffers& b = *buffers_;
  const ModelConfig& config = parts_.config;
  const LayerWeights& w = parts_.weights.layers[static_cast<size_t>(layer)];
  Kernels& kernels = parts_.kernels;
  kernels.HeadNormRope(b.q.First(b.num_tokens), config.head_dim, w.q_norm,
                       config.rms_eps, *rope_, b.positions);
  kernels.HeadNormRope(b.k.First(b.num_tokens), config.head_dim, w.k_norm,
                       config.rms_eps, *rope_, b.positions);
  PointToPages(layer);
  kernels.AppendKv(kv_layout_, b.attention, b.k.ConstFirst(b.num_tokens),
                   b.v.ConstFirst(b.num_tokens));
  kernels.Round(b.q.ConstFirst(b.num_tokens), b.q_act.First(b.num_tokens));
}

void ForwardPass::PointToPages(int32_t layer) {
  ForwardBuffers& b = *buffers_;
  b.pages.clear();
  for (const ForwardSequence& sequence : b.sequences) {
    for (const int32_t page : sequence.pages) {
      b.pages.push_back(parts_.kv.Page(page, layer));
    }
  }
  size_t first = 0;
  for (size_t i = 0; i < b.sequences.size(); ++i) {
    b.attention[i].pages = b.pages.data() + first;
    first += b.sequences[i].pages.size();
  }
}

// Leaves the output of the layer's experts in `delta`.
absl::Status ForwardPass::RunExperts(int32_t layer, int32_t moe_layer) {
  ForwardBuffers& b = *buffers_;
  const GateOutput gate = RunGate(layer, moe_layer);
  std::span<const Fp16> hints;
  if (parts_.observer != nullptr) {
    const ProfileScope zone(parts_.profile, Zone::kObserve, layer);
    hints = parts_.observer->OnGate(gate);
  }
  {
    const ProfileScope zone(parts_.profile, Zone::kExchange, layer);
    PORTOLAN_RETURN_IF_ERROR(parts_.moe.Run(
        moe_layer,
        {.num_tokens = b.num_tokens,
         .top_k = parts_.config.top_k,
         .experts = gate.experts,
         .weights = gate.weights},
        b.normed_act.First(b.num_tokens), hints, b.delta.First(b.num_tokens)));
  }
  if (parts_.observer != nullptr) {
    const ProfileScope zone(parts_.profile, Zone::kObserve, layer);
    parts_.observer->OnLayerEnd(moe_layer);
  }
  return absl::OkStatus();
}

// Adds what attention left in `delta`; the norm goes to `normed_act`, unrounded
// to `normed`.
void ForwardPass::NormExpertInput(int32_t layer) {
  ForwardBuffers& b = *buffers_;
  parts_.kernels.AddRmsNorm(
      b.hidden.First(b.num_tokens), b.delta.ConstFirst(b.num_tokens),
      parts_.weights.layers[static_cast<size_t>(layer)].post_attention_norm,
      parts_.config.rms_eps, b.normed_act.First(b.num_tokens), b.normed.data());
}

GateOutput ForwardPass::RunGate(int32_t layer, int32_t moe_layer) {
  const ProfileScope zone(parts_.profile, Zone::kGate, layer);
  ForwardBuffers& b = *buffers_;
  NormExpertInput(layer);
  const auto chosen = static_cast<size_t>(b.num_tokens * parts_.config.top_k);
  ComputeGate(layer, b.normed.First(b.num_tokens),
              b.probabilities.First(b.num_tokens));
  const std::span<int32_t> experts = std::span(b.experts).first(chosen);
  const std::span<float> weights = std::span(b.weights).first(chosen);
  ChooseExperts(b.probabilities.ConstFirst(b.num_tokens),
                {parts_.config.top_k, parts_.config.norm_topk_prob}, experts,
                weights);
  GateOutput gate{.layer = moe_layer,
                  .probabilities = b.probabilities.ConstFirst(b.num_tokens),
                  .experts = experts,
                  .weights = weights,
                  .look_ahead = {}};
  LookAheadFrom(layer, gate);
  return gate;
}

// Leaves the output of the layer's dense block in `delta`.
void ForwardPass::RunDenseBlock(int32_t layer) {
  const ProfileScope zone(parts_.profile, Zone::kDense, layer);
  ForwardBuffers& b = *buffers_;
  NormExpertInput(layer);
  const auto all = std::span<const int32_t>(b.all_rows)
                       .first(static_cast<size_t>(b.num_tokens));
  const ExpertFfn::Work work{
      parts_.weights.layers[static_cast<size_t>(layer)].dense_mlp, all};
  dense_ffn_->Run({&work, 1}, b.normed_act.First(b.num_tokens), all,
                  b.delta.data(), b.delta.cols());
}

// The rows as activations, which kernels read in whole blocks of K.
ActivationView ForwardPass::GateInput(MatrixView<float> normed) {
  if (normed.cols() == PaddedCols(normed.cols())) {
    return {.data = reinterpret_cast<std::byte*>(normed.data().data()),
            .dtype = ActivationDtype::kF32,
            .rows = normed.rows(),
            .cols = normed.cols(),
            .stride = normed.cols()};
  }
  const ActivationView padded = buffers_->gate_input.First(normed.rows());
  parts_.kernels.Round({normed.data(), normed.rows(), normed.cols()}, padded);
  return padded;
}

// The gate's probabilities of `normed` rows: f32 all the way.
void ForwardPass::ComputeGate(int32_t layer, MatrixView<float> normed,
                              MatrixView<float> probabilities) {
  const LayerWeights& w = parts_.weights.layers[static_cast<size_t>(layer)];
  const ActivationView x = GateInput(normed);
  parts_.kernels.Linear(x, w.gate, nullptr, probabilities.data().data(),
                        probabilities.cols());
  if (parts_.config.gate_score == GateScore::kSigmoid) {
    parts_.kernels.Sigmoid(probabilities);
  } else {
    parts_.kernels.Softmax(probabilities);
  }
}

// What the gates of the next MoE layers say to the present hidden state.
void ForwardPass::LookAheadFrom(int32_t layer, GateOutput& gate) {
  ForwardBuffers& b = *buffers_;
  int32_t ahead = layer;
  for (int distance = 0; distance < LookAhead(); ++distance) {
    do {
      ++ahead;
    } while (ahead < parts_.config.num_layers &&
             !parts_.config.IsMoeLayer(ahead));
    if (ahead >= parts_.config.num_layers) return;
    const LayerWeights& w = parts_.weights.layers[static_cast<size_t>(ahead)];
    parts_.kernels.RmsNorm(b.hidden.ConstFirst(b.num_tokens),
                           w.post_attention_norm, parts_.config.rms_eps,
                           b.look_ahead_act.First(b.num_tokens),
                           b.look_ahead_normed.data());
    FloatRows& out = b.look_ahead[distance];
    ComputeGate(ahead, b.look_ahead_normed.First(b.num_tokens),
                out.First(b.num_tokens));
    gate.look_ahead[distance] = out.ConstFirst(b.num_tokens);
  }
}

MatrixView<const float> ForwardPass::Logits() {
  const ProfileScope zone(parts_.profile, Zone::kLogits);
  ForwardBuffers& b = *buffers_;
  const MatrixView<float> hidden = b.hidden.First(b.num_tokens);
  const MatrixView<float> delta = b.delta.First(b.num_tokens);
  const MatrixView<float> picked =
      b.logit_hidden.First(options_.max_logit_rows);
  int64_t num_rows = 0;
  int64_t first = 0;
  for (const ForwardSequence& sequence : b.sequences) {
    const auto count = static_cast<int64_t>(sequence.tokens.size());
    const int64_t wanted = sequence.logits == LogitRows::kAll    ? count
                           : sequence.logits == LogitRows::kLast ? 1
                                                                 : 0;
    PORTOLAN_CHECK(num_rows + wanted <= options_.max_logit_rows);
    for (int64_t row = first + count - wanted; row < first + count; ++row) {
      std::transform(hidden.Row(row).begin(), hidden.Row(row).end(),
                     delta.Row(row).begin(), picked.Row(num_rows++).begin(),
                     std::plus<>());
    }
    first += count;
  }
  const ActivationView act = b.logit_act.First(num_rows);
  parts_.kernels.RmsNorm(b.logit_hidden.ConstFirst(num_rows),
                         parts_.weights.final_norm, parts_.config.rms_eps, act,
                         nullptr);
  parts_.kernels.Linear(act, parts_.weights.lm_head, nullptr, b.logits.data(),
                        b.logits.cols());
  return b.logits.ConstFirst(num_rows);
}

}  // namespace portolan
