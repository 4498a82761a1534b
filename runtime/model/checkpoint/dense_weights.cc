#include "runtime/model/checkpoint/dense_weights.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "experts/expert_slot.h"
#include "experts/quantised_expert.h"
#include "runtime/base/cpu_topology.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/checkpoint/dense_reader.h"
#include "runtime/model/checkpoint/expert_tensors.h"

namespace portolan {
namespace {

// Plans first (finds every tensor, takes the memory), then loads.
class DenseLoader {
 public:
  // `dry`: only counts the memory that it would take; no Run() follows.
  DenseLoader(const ModelConfig& config, const Checkpoint& checkpoint,
              DenseWeights& weights, WeightFormat format, bool dry = false)
      : config_(config),
        checkpoint_(checkpoint),
        reader_(config, checkpoint),
        weights_(weights),
        format_(format),
        dry_(dry),
        numa_nodes_(dry ? std::vector<int>() : NumaNodesOf(AllowedCpus())) {}

  absl::Status Plan();
  absl::Status Run(DenseWeights::Progress progress);

  // Of the plan, scales included.
  std::vector<const TensorInfo*> Tensors() const;

  // Stored dtypes other than bf16: "F16, F32".
  std::string RoundedDtypes() const;

  // Of all buffers that were asked for.
  int64_t buffer_bytes() const { return buffer_bytes_; }

 private:
  struct Job {
    const TensorInfo* tensor;
    std::function<absl::Status(const TensorInfo&)> load;
  };

  // The MLP of a dense layer while it is read.
  struct DenseMlp {
    int layer = 0;
    std::byte* slot = nullptr;
    AlignedBuffer exact;  // the slot in bf16, if it is to be quantised
    int matrices_left = 0;
  };

  absl::Status PlanLayer(int layer);
  absl::Status PlanAttention(const std::string& prefix, LayerWeights& out);
  absl::Status PlanDenseMlp(int layer, LayerWeights& out);
  // Where its matrices are packed as bf16.
  absl::StatusOr<std::byte*> ExactSlot(DenseMlp& mlp) const;
  absl::Status FinishDenseMlp(DenseMlp& mlp) const;

  // Each takes a tensor of this name and size into `out` when it is its turn.
  absl::Status AddVector(const std::string& name, int64_t size,
                         std::vector<float>& out);
  absl::Status AddMatrix(const std::string& name, int64_t rows, int64_t cols,
                         WeightFormat format, PackedMatrix& out);
  absl::Status AddEmbedding();

  absl::StatusOr<std::byte*> NewBuffer(int64_t bytes);

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  DenseReader reader_;
  DenseWeights& weights_;
  const WeightFormat format_;
  const bool dry_;
  const std::vector<int> numa_nodes_;  // that this process may use
  int64_t buffer_bytes_ = 0;
  std::vector<Job> jobs_;
};

absl::Status DenseLoader::Plan() {
  weights_.hidden = config_.hidden;
  weights_.format = format_;
  weights_.layers.resize(static_cast<size_t>(config_.num_layers));
  PORTOLAN_RETURN_IF_ERROR(AddEmbedding());
  PORTOLAN_RETURN_IF_ERROR(
      AddVector("model.norm.weight", config_.hidden, weights_.final_norm));
  if (!config_.tie_embeddings) {
    PORTOLAN_RETURN_IF_ERROR(AddMatrix("lm_head.weight", config_.vocab_size,
                                       config_.hidden, format_,
                                       weights_.lm_head));
  }
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    PORTOLAN_RETURN_IF_ERROR(PlanLayer(layer));
  }
  return absl::OkStatus();
}

absl::Status DenseLoader::PlanLayer(int layer) {
  LayerWeights& out = weights_.layers[static_cast<size_t>(layer)];
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  PORTOLAN_RETURN_IF_ERROR(
      AddVector(absl::StrCat(prefix, "input_layernorm.weight"), config_.hidden,
                out.input_norm));
  PORTOLAN_RETURN_IF_ERROR(
      AddVector(absl::StrCat(prefix, "post_attention_layernorm.weight"),
                config_.hidden, out.post_attention_norm));
  PORTOLAN_RETURN_IF_ERROR(
      PlanAttention(absl::StrCat(prefix, "self_attn."), out));
  if (!config_.IsMoeLayer(layer)) return PlanDenseMlp(layer, out);
  PORTOLAN_ASSIGN_OR_RETURN(const std::string block,
                            MoeBlockOf(config_, checkpoint_, layer));
  return AddMatrix(absl::StrCat(block, ".gate.weight"), config_.num_experts,
                   config_.hidden, WeightFormat::kBf16, out.gate);
}

absl::Status DenseLoader::PlanAttention(const std::string& prefix,
                                        LayerWeights& out) {
  const int64_t q_size = int64_t{config_.num_heads} * config_.head_dim;
  const int64_t kv_size = int64_t{config_.num_kv_heads} * config_.head_dim;
  struct Projection {
    const char* name;
    int64_t rows, cols;
    PackedMatrix& matrix;
    std::vector<float>& bias;
    bool has_bias;
  };
  const Projection projections[] = {{"q_proj", q_size, config_.hidden, out.q,
                                     out.q_bias, config_.has_qkv_bias},
                                    {"k_proj", kv_size, config_.hidden, out.k,
                                     out.k_bias, config_.has_qkv_bias},
                                    {"v_proj", kv_size, config_.hidden, out.v,
                                     out.v_bias, config_.has_qkv_bias},
                                    {"o_proj", config_.hidden, q_size, out.o,
                                     out.o_bias, config_.has_output_bias}};
  for (const Projection& p : projections) {
    PORTOLAN_RETURN_IF_ERROR(AddMatrix(absl::StrCat(prefix, p.name, ".weight"),
                                       p.rows, p.cols, format_, p.matrix));
    if (!p.has_bias) continue;
    PORTOLAN_RETURN_IF_ERROR(
        AddVector(absl::StrCat(prefix, p.name, ".bias"), p.rows, p.bias));
  }
  if (!config_.has_qk_norm) return absl::OkStatus();
  PORTOLAN_RETURN_IF_ERROR(AddVector(absl::StrCat(prefix, "q_norm.weight"),
                                     config_.head_dim, out.q_norm));
  return AddVector(absl::StrCat(prefix, "k_norm.weight"), config_.head_dim,
                   out.k_norm);
}

absl::Status DenseLoader::PlanDenseMlp(int layer, LayerWeights& out) {
  const ExpertShape shape = DenseMlpShape(config_);
  PORTOLAN_ASSIGN_OR_RETURN(std::byte * slot,
                            NewBuffer(ExpertSlotBytes(shape, format_)));
  out.dense_mlp = slot;
  // Its matrices may lie anywhere in the files.
  const auto mlp = std::make_shared<DenseMlp>();
  *mlp = {.layer = layer, .slot = slot, .exact = {}};
  using Pack = void (*)(const ExpertShape&, const Bf16*, std::byte*);
  const std::pair<const char*, Pack> parts[] = {{"gate_proj", PackExpertGate},
                                                {"up_proj", PackExpertUp},
                                                {"down_proj", PackExpertDown}};
  for (const auto& [name, pack] : parts) {
    const bool is_down = pack == PackExpertDown;
    const int64_t rows = is_down ? shape.hidden : shape.intermediate;
    const int64_t cols = is_down ? shape.intermediate : shape.hidden;
    PORTOLAN_ASSIGN_OR_RETURN(
        const TensorInfo* tensor,
        reader_.Find(
            absl::StrCat("model.layers.", layer, ".mlp.", name, ".weight"),
            {rows, cols}));
    ++mlp->matrices_left;
    jobs_.push_back(
        {tensor, [=, this, pack = pack](const TensorInfo& from) {
           PORTOLAN_ASSIGN_OR_RETURN(const std::span<const Bf16> matrix,
                                     reader_.Read(from, 0, rows * cols));
           PORTOLAN_ASSIGN_OR_RETURN(std::byte* const to, ExactSlot(*mlp));
           pack(shape, matrix.data(), to);
           return --mlp->matrices_left > 0 ? absl::OkStatus()
                                           : FinishDenseMlp(*mlp);
         }});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::byte*> DenseLoader::ExactSlot(DenseMlp& mlp) const {
  if (format_ == WeightFormat::kBf16) return mlp.slot;
  if (mlp.exact.size() == 0) {
    PORTOLAN_ASSIGN_OR_RETURN(mlp.exact,
                              AlignedBuffer::Allocate(static_cast<size_t>(
                                  ExpertSlotBytes(DenseMlpShape(config_)))));
  }
  return mlp.exact.data();
}

absl::Status DenseLoader::FinishDenseMlp(DenseMlp& mlp) const {
  if (format_ == WeightFormat::kBf16) return absl::OkStatus();
  ExpertQuantisation error;
  const absl::Status status = QuantiseExpert(DenseMlpShape(config_), format_,
                                             mlp.exact.data(), mlp.slot, error);
  mlp.exact = AlignedBuffer();
  if (status.ok()) return status;
  return absl::Status(
      status.code(),
      absl::StrCat(checkpoint_.dir(), ": model.layers.", mlp.layer,
                   ".mlp: ", status.message(), "; use --dense-weights bf16"));
}

absl::Status DenseLoader::AddVector(const std::string& name, int64_t size,
                                    std::vector<float>& out) {
  PORTOLAN_ASSIGN_OR_RETURN(const TensorInfo* tensor,
                            reader_.Find(name, {size}));
  jobs_.push_back({tensor, [this, &out](const TensorInfo& from) {
                     return reader_.ReadVector(from, out);
                   }});
  return absl::OkStatus();
}

absl::Status DenseLoader::AddMatrix(const std::string& name, int64_t rows,
                                    int64_t cols, WeightFormat format,
                                    PackedMatrix& out) {
  PORTOLAN_ASSIGN_OR_RETURN(const TensorInfo* tensor,
                            reader_.Find(name, {rows, cols}));
  PORTOLAN_ASSIGN_OR_RETURN(std::byte * buffer,
                            NewBuffer(PackedBytes(rows, cols, format)));
  out = {.data = buffer, .n = rows, .k = cols, .format = format};
  jobs_.push_back(
      {tensor, [this, matrix = out, buffer](const TensorInfo& from) {
         return reader_.ReadMatrix(from, matrix, buffer);
       }});
  return absl::OkStatus();
}

// The rows for look-up; if tied, lm_head is packed from them.
absl::Status DenseLoader::AddEmbedding() {
  const int64_t rows = config_.vocab_size;
  const int64_t cols = config_.hidden;
  PORTOLAN_ASSIGN_OR_RETURN(
      const TensorInfo* tensor,
      reader_.Find("model.embed_tokens.weight", {rows, cols}));
  PORTOLAN_ASSIGN_OR_RETURN(
      std::byte * buffer,
      NewBuffer(rows * cols * static_cast<int64_t>(sizeof(Bf16))));
  const std::span<Bf16> embedding(reinterpret_cast<Bf16*>(buffer),
                                  static_cast<size_t>(rows * cols));
  weights_.embedding = embedding;
  std::byte* head = nullptr;
  if (config_.tie_embeddings) {
    PORTOLAN_ASSIGN_OR_RETURN(head,
                              NewBuffer(PackedBytes(rows, cols, format_)));
    weights_.lm_head = {.data = head, .n = rows, .k = cols, .format = format_};
  }
  jobs_.push_back({tensor, [=, this](const TensorInfo& from) {
                     PORTOLAN_RETURN_IF_ERROR(reader_.ReadAll(from, embedding));
                     if (head == nullptr) return absl::OkStatus();
                     return reader_.Pack(from, embedding, weights_.lm_head,
                                         head);
                   }});
  return absl::OkStatus();
}

absl::Status DenseLoader::Run(DenseWeights::Progress progress) {
  std::ranges::sort(jobs_, {}, [](const Job& job) {
    return std::tuple(job.tensor->file, job.tensor->offset);
  });
  int64_t total = 0;
  for (const Job& job : jobs_) total += static_cast<int64_t>(job.tensor->bytes);
  int64_t done = 0;
  for (const Job& job : jobs_) {
    PORTOLAN_RETURN_IF_ERROR(job.load(*job.tensor));
    done += static_cast<int64_t>(job.tensor->bytes);
    progress(done, total);
  }
  return absl::OkStatus();
}

std::vector<const TensorInfo*> DenseLoader::Tensors() const {
  std::vector<const TensorInfo*> tensors;
  for (const Job& job : jobs_) {
    tensors.push_back(job.tensor);
    if (LoadableDtype(job.tensor->dtype) != TensorDtype::kF8E4M3) continue;
    tensors.push_back(
        checkpoint_.Find(absl::StrCat(job.tensor->name, "_scale_inv")));
  }
  return tensors;
}

std::string DenseLoader::RoundedDtypes() const {
  std::set<std::string> dtypes;
  for (const Job& job : jobs_) dtypes.insert(job.tensor->dtype);
  for (const TensorInfo& tensor : checkpoint_.tensors()) {
    if (absl::StrContains(tensor.name, ".experts.") &&
        !absl::EndsWith(tensor.name, "_scale_inv") &&
        LoadableDtype(tensor.dtype)) {
      dtypes.insert(tensor.dtype);
    }
  }
  dtypes.erase("BF16");
  return absl::StrJoin(dtypes, ", ");
}

absl::StatusOr<std::byte*> DenseLoader::NewBuffer(int64_t bytes) {
  buffer_bytes_ += bytes;
  if (dry_) return nullptr;
  PORTOLAN_ASSIGN_OR_RETURN(
      AlignedBuffer buffer,
      AlignedBuffer::Allocate(static_cast<size_t>(bytes)));
  // Threads of every node read them all.
  if (numa_nodes_.size() > 1) PlaceMemory(buffer.bytes(), numa_nodes_);
  weights_.buffers.push_back(std::move(buffer));
  return weights_.buffers.back().data();
}

}  // namespace

absl::StatusOr<DenseWeights> DenseWeights::Load(const ModelConfig& config,
                                                const Checkpoint& checkpoint,
                                                Progress progress,
                                                Notice notice,
                                                WeightFormat format) {
  DenseWeights weights;
  DenseLoader loader(config, checkpoint, weights, format);
  PORTOLAN_RETURN_IF_ERROR(loader.Plan());
  const std::string rounded = loader.RoundedDtypes();
  if (!rounded.empty()) {
    notice(absl::StrCat(checkpoint.dir(), ": weights stored as ", rounded,
                        " are rounded to bf16"));
  }
  PORTOLAN_RETURN_IF_ERROR(loader.Run(progress));
  return weights;
}

absl::StatusOr<int64_t> DenseWeights::BytesNeeded(const ModelConfig& config,
                                                  const Checkpoint& checkpoint,
                                                  WeightFormat format) {
  DenseWeights nothing;
  DenseLoader loader(config, checkpoint, nothing, format, /*dry=*/true);
  PORTOLAN_RETURN_IF_ERROR(loader.Plan());
  return loader.buffer_bytes();
}

absl::StatusOr<std::vector<const TensorInfo*>> DenseWeights::Tensors(
    const ModelConfig& config, const Checkpoint& checkpoint) {
  DenseWeights nothing;
  DenseLoader loader(config, checkpoint, nothing, WeightFormat::kBf16,
                     /*dry=*/true);
  PORTOLAN_RETURN_IF_ERROR(loader.Plan());
  return loader.Tensors();
}

int64_t DenseWeights::bytes() const {
  size_t bytes = 0;
  for (const AlignedBuffer& buffer : buffers) bytes += buffer.size();
  return static_cast<int64_t>(bytes);
}

ExpertShape DenseMlpShape(const ModelConfig& config) {
  return {.hidden = config.hidden, .intermediate = config.dense_intermediate};
}

}  // namespace portolan
