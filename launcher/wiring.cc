#include "launcher/wiring.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/local_world.h"
#include "comm/mpi_session.h"
#include "experts/checkpoint_format.h"
#include "experts/file_expert_source.h"
#include "experts/hash64.h"
#include "experts/memory_budget.h"
#include "experts/policy_lru.h"
#include "launcher/console.h"
#include "launcher/fault.h"
#include "runtime/base/cpu_topology.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/checkpoint/fingerprint.h"
#include "runtime/serving/collectives.h"

namespace portolan {
namespace {

// Ranks that still read a large model keep the others waiting.
constexpr absl::Duration kStartTimeout = absl::Minutes(30);

// Ranks that share this rank's host, and which of them it is.
struct LocalPlace {
  int rank = 0;
  int size = 0;
};

LocalPlace PlaceOnHost(const Transport& transport) {
  LocalPlace place;
  for (int r = 0; r < transport.world_size(); ++r) {
    if (transport.host(Rank{r}) != transport.host(transport.rank())) continue;
    if (Rank{r} == transport.rank()) place.rank = place.size;
    ++place.size;
  }
  return place;
}

// Contiguous blocks of experts, sizes as equal as they can be.
OwnerTable ContiguousOwners(const ModelConfig& config, int world_size) {
  OwnerTable owners(static_cast<size_t>(config.num_layers));
  for (auto& layer : owners) {
    for (int64_t expert = 0; expert < config.num_experts; ++expert) {
      layer.push_back(
          Rank{static_cast<int32_t>(expert * world_size / config.num_experts)});
    }
  }
  return owners;
}

// What two ranks must share to compute together (contracts: numerics id): the
// order of accumulation, dtypes, weight format and model.
uint64_t NumericsId(const JobOptions& options, const Model& model, Rank rank) {
  constexpr uint64_t kOrderVersion = 1;
  const std::string text = absl::StrCat(
      "order ", kOrderVersion, "; activations and kv ",
      options.activations == ActivationDtype::kF32 ? "f32" : "bf16",
      "; weights bf16; model ", model.fingerprint,
      rank == Rank{options.odd_rank} ? "; odd" : "");
  return Hash64(std::as_bytes(std::span(text)));
}

// Room for --batch sequences of the model's whole context, or of 4096 positions
// where the context is longer; at least for one whole context.
int32_t NumKvPages(const JobOptions& options, const ModelConfig& config,
                   int64_t page_bytes) {
  if (options.kv_memory_bytes > 0) {
    const int64_t bytes = page_bytes * config.num_layers;
    return static_cast<int32_t>(
        std::max<int64_t>(1, options.kv_memory_bytes / bytes));
  }
  constexpr int64_t kUsualContext = 4096;
  const int64_t tokens =
      options.kv_tokens > 0
          ? options.kv_tokens
          : std::max(
                config.max_position,
                options.batch * std::min(config.max_position, kUsualContext));
  // A sequence may end inside a page.
  return KvPagesFor(tokens) + options.batch;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RankRuntime>> RankRuntime::Create(
    const JobOptions& options, const Model& model, Transport& transport,
    TokenSink& sink, ForwardObserver* observer) {
  std::unique_ptr<RankRuntime> rank(
      new RankRuntime(options, model, transport, observer));
  rank->WireThreads();
  // A rank that cannot load its experts tells the others why.
  PORTOLAN_RETURN_IF_ERROR(
      AgreeOnStatus(transport, rank->WireExperts(), kStartTimeout));
  PORTOLAN_RETURN_IF_ERROR(rank->WireExchange());
  PORTOLAN_RETURN_IF_ERROR(
      AgreeOnStatus(transport, rank->WireEngine(sink), kStartTimeout));
  return rank;
}

RankRuntime::RankRuntime(const JobOptions& options, const Model& model,
                         Transport& transport, ForwardObserver* observer)
    : options_(options),
      model_(model),
      transport_(transport),
      observer_(observer),
      owners_(ContiguousOwners(model.config, transport.world_size())) {}

RankRuntime::~RankRuntime() = default;

void RankRuntime::WireThreads() {
  const LocalPlace place = PlaceOnHost(transport_);
  ThreadPlan plan =
      PlanThreads(AllowedCpus(), options_.threads, place.rank, place.size);
  pool_ = std::make_unique<ThreadPool>(plan.num_threads, std::move(plan.cpus));
  const CpuPath path = options_.activations == ActivationDtype::kF32
                           ? CpuPath::kScalar
                           : options_.cpu_path.value_or(BestCpuPath());
  kernels_ = std::make_unique<Kernels>(path, *pool_);
}

absl::Status RankRuntime::WireExperts() {
  PolicyShape shape = ShapeOfRank();
  const auto owned = static_cast<int64_t>(shape.owned.size());
  PORTOLAN_ASSIGN_OR_RETURN(
      const MemoryBudget budget,
      PlanExpertMemory(options_.expert_memory, owned, shape.expert_bytes));
  shape.num_slots = static_cast<int32_t>(budget.num_slots);
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<ChunkedSource> source,
                            OpenExpertSource(shape.owned));
  PORTOLAN_ASSIGN_OR_RETURN(
      cache_, ExpertCache::Create({.slot_bytes = shape.expert_bytes}, shape,
                                  MakeLruPolicy(shape), std::move(source)));
  if (!budget.resident()) return absl::OkStatus();
  Progress progress(absl::StrCat("Loading ", owned, " experts"),
                    transport_.rank() != Rank{0});
  return cache_->LoadAll([&](int64_t done, int64_t total) {
    progress.Update(done * shape.expert_bytes, total * shape.expert_bytes);
  });
}

absl::StatusOr<std::unique_ptr<ChunkedSource>> RankRuntime::OpenExpertSource(
    std::span<const ExpertId> owned) {
  constexpr int kQueueDepth = 4;  // enough for the disks measured
  PORTOLAN_ASSIGN_OR_RETURN(
      std::unique_ptr<RecordFormat> format,
      CheckpointFormat::Open(model_.experts.shape(), owned, [&](ExpertId id) {
        return model_.experts.ExpertExtentsOf(id);
      }));
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<FileReader> reader,
                            MakeFileReader(FileReaderKind::kAuto, kQueueDepth));
  return std::make_unique<FileExpertSource>(std::move(format),
                                            std::move(reader));
}

PolicyShape RankRuntime::ShapeOfRank() const {
  const ModelConfig& config = model_.config;
  PolicyShape shape;
  shape.num_layers = config.num_layers;
  shape.num_experts = config.num_experts;
  shape.top_k = config.top_k;
  shape.expert_bytes = ExpertSlotBytes(model_.experts.shape());
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.IsMoeLayer(layer)) continue;
    for (int32_t expert = 0; expert < config.num_experts; ++expert) {
      const Rank owner =
          owners_[static_cast<size_t>(layer)][static_cast<size_t>(expert)];
      if (owner == transport_.rank()) shape.owned.push_back({layer, expert});
    }
  }
  return shape;
}

absl::Status RankRuntime::WireExchange() {
  const ModelConfig& config = model_.config;
  ExchangeOptions exchange;
  exchange.num_layers = config.num_layers;
  exchange.num_experts = config.num_experts;
  exchange.top_k = config.top_k;
  exchange.row_bytes =
      PaddedCols(config.hidden) * BytesOf(options_.activations);
  exchange.hidden = config.hidden;
  exchange.combine = options_.combine;
  exchange.buffer_bytes = options_.exchange_memory_bytes;
  exchange.numerics_id = NumericsId(options_, model_, transport_.rank());
  exchange.model_fingerprint = model_.fingerprint;
  exchange.step_timeout = absl::Seconds(options_.step_timeout_s);
  exchange.max_round_tokens = static_cast<int32_t>(options_.tokens_per_step);
  PORTOLAN_ASSIGN_OR_RETURN(exchange.phase_hook,
                            ParseFault(options_.fault, transport_.rank()));
  PORTOLAN_ASSIGN_OR_RETURN(
      exchange_, TokenExchange::Create(transport_, exchange, owners_));
  ffn_ = std::make_unique<ExpertFfn>(
      model_.experts.shape(), options_.activations, *kernels_,
      int64_t{exchange_->round_tokens()} * config.top_k *
          transport_.world_size());
  moe_ = std::make_unique<MoeLayer>(*exchange_, *cache_, *ffn_,
                                    config.num_layers, config.num_experts);
  return absl::OkStatus();
}

absl::Status RankRuntime::WireEngine(TokenSink& sink) {
  const ModelConfig& config = model_.config;
  const KvLayout layout{.num_kv_heads = config.num_kv_heads,
                        .head_dim = config.head_dim,
                        .dtype = options_.activations};
  const KvCache::Options kv{
      .num_layers = config.num_layers,
      .page_bytes = layout.PageBytes(),
      .num_pages = NumKvPages(options_, config, layout.PageBytes())};
  PORTOLAN_ASSIGN_OR_RETURN(KvCache cache, KvCache::Create(kv));
  kv_ = std::make_unique<KvCache>(std::move(cache));
  const ForwardPass::Options forward{
      .max_tokens = options_.tokens_per_step,
      .max_logit_rows = std::max<int64_t>(options_.batch, options_.logit_rows),
      .activations = options_.activations};
  PORTOLAN_ASSIGN_OR_RETURN(
      forward_, ForwardPass::Create(forward, {.config = config,
                                              .weights = model_.weights,
                                              .kernels = *kernels_,
                                              .kv = *kv_,
                                              .moe = *moe_,
                                              .observer = observer_}));
  sampler_ = std::make_unique<Sampler>(static_cast<int32_t>(config.vocab_size));
  const Engine::Options engine{
      .batcher = {.max_sequences = options_.batch,
                  .tokens_per_step = options_.tokens_per_step,
                  .tokens_per_page = kPageTokens},
      .max_context = config.max_position};
  engine_ = std::make_unique<Engine>(engine, *forward_, *kv_, *sampler_, sink);
  return absl::OkStatus();
}

namespace {

absl::StatusOr<Model> LoadModel(const JobOptions& options, bool silent) {
  PORTOLAN_ASSIGN_OR_RETURN(ModelConfig config,
                            LoadModelConfig(options.model_dir));
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint,
                            Checkpoint::Open(options.model_dir));
  PORTOLAN_ASSIGN_OR_RETURN(ExpertTensors experts,
                            ExpertTensors::Find(config, *checkpoint));
  Model model{.config = std::move(config),
              .checkpoint = std::move(checkpoint),
              .experts = std::move(experts),
              .weights = {},
              .tokenizer = nullptr,
              .fingerprint = 0};
  if (options.needs_tokenizer) {
    PORTOLAN_ASSIGN_OR_RETURN(model.tokenizer,
                              Tokenizer::Load(options.model_dir));
  }
  PORTOLAN_ASSIGN_OR_RETURN(model.fingerprint,
                            ModelFingerprint(model.config, *model.checkpoint));
  Progress progress("Loading the dense weights", silent);
  PORTOLAN_ASSIGN_OR_RETURN(
      model.weights,
      DenseWeights::Load(
          model.config, *model.checkpoint,
          [&](int64_t done, int64_t total) { progress.Update(done, total); },
          [&](const std::string& text) {
            if (!silent) {
              std::fprintf(stderr, "notice: %s\n", text.c_str());
            }
          }));
  return model;
}

}  // namespace

namespace {

absl::Status RunThreads(const JobOptions& options, JobBody body) {
  PORTOLAN_ASSIGN_OR_RETURN(const Model model,
                            LoadModel(options, /*silent=*/false));
  return body(model, [&](RankBody rank_body) {
    return RunLocalWorld(std::max(1, options.ranks), rank_body);
  });
}

absl::Status RunMpiRank(const JobOptions& options, Transport& transport,
                        JobBody body) {
  const absl::StatusOr<Model> model =
      LoadModel(options, /*silent=*/transport.rank() != Rank{0});
  PORTOLAN_RETURN_IF_ERROR(
      AgreeOnStatus(transport, model.status(), kStartTimeout));
  return body(*model, [&](RankBody rank_body) { return rank_body(transport); });
}

absl::Status RunProcess(const JobOptions& options, JobBody body) {
  MpiSessionOptions mpi;
  PORTOLAN_ASSIGN_OR_RETURN(mpi.transport,
                            ParseTransportKind(options.transport));
  mpi.silence = absl::Seconds(options.liveness_timeout_s);
  PORTOLAN_ASSIGN_OR_RETURN(const std::unique_ptr<MpiSession> session,
                            MpiSession::Create(nullptr, nullptr, mpi));
  const absl::Status status = RunMpiRank(options, session->transport(), body);
  // Finish() does not come back from an error, so it is reported here.
  Report(status);
  session->Finish(status, kExitFailed);
  return status;
}

}  // namespace

absl::Status RunJob(const JobOptions& options, JobBody body) {
  PORTOLAN_RETURN_IF_ERROR(options.Validate());
  const bool is_process = options.ranks == 0 && options.launched_by_mpi;
  return is_process ? RunProcess(options, body) : RunThreads(options, body);
}

}  // namespace portolan
