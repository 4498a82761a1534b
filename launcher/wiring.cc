#include "launcher/wiring.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/message.h"
#include "experts/hash64.h"
#include "experts/link_model.h"
#include "experts/memory_budget.h"
#include "experts/policies.h"
#include "experts/replay.h"
#include "experts/source_factory.h"
#include "launcher/console.h"
#include "launcher/fault.h"
#include "launcher/job_agreement.h"
#include "launcher/memory_plan.h"
#include "launcher/notices.h"
#include "runtime/base/cpu_topology.h"
#include "runtime/base/status_macros.h"
#include "runtime/serving/collectives.h"
#include "runtime/serving/history_gather.h"

namespace portolan {
namespace {

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

// What two ranks must share to compute together (contracts: numerics id): the
// order of accumulation, dtypes, weight format and model.
uint64_t NumericsId(const JobOptions& options, const Model& model, Rank rank) {
  constexpr uint64_t kOrderVersion = 1;
  const std::string text = absl::StrCat(
      "order ", kOrderVersion, "; activations and kv ",
      options.activations == ActivationDtype::kF32 ? "f32" : "bf16",
      "; weights ", std::string(WeightFormatName(options.weights)),
      options.dense_weights == WeightFormat::kBf16
          ? std::string()
          : absl::StrCat("; all dense ",
                         std::string(WeightFormatName(options.dense_weights))),
      "; model ", model.fingerprint,
      rank == Rank{options.odd_rank} ? "; odd" : "");
  return Hash64(std::as_bytes(std::span(text)));
}

// What a healthy rank may take to load one expert: it reads 10 MiB/s, or half
// of what a slower --expert-link says.
absl::StatusOr<absl::Duration> ExpertLoadTime(const JobOptions& options,
                                              int64_t bytes) {
  absl::Duration time = LinkSpec{.bytes_per_second = 10 << 20}.TimeOf(bytes);
  if (!options.expert_link.empty()) {
    PORTOLAN_ASSIGN_OR_RETURN(const LinkSpec link,
                              ParseLinkSpec(options.expert_link));
    time = std::max(time, 2 * (link.latency + link.TimeOf(bytes)));
  }
  return std::min(time, absl::Microseconds(kMostLoadUs));
}

}  // namespace

PackIdentity PackIdentityOf(const Model& model, WeightFormat format) {
  return {.fingerprint = model.fingerprint,
          .numerics =
              absl::StrCat("order 1, ", std::string(WeightFormatName(format))),
          .num_layers = model.config.num_moe_layers(),
          .num_experts = model.config.num_experts,
          .shape = model.experts.shape(),
          .format = format,
          .slot_bytes = ExpertSlotBytes(model.experts.shape(), format)};
}

absl::StatusOr<std::unique_ptr<RankRuntime>> RankRuntime::Create(
    const JobOptions& options, const Model& model, Transport& transport,
    TokenSink& sink, ForwardObserver* observer, HistoryMailbox* mailbox) {
  std::unique_ptr<RankRuntime> rank(
      new RankRuntime(options, model, transport, observer));
  PORTOLAN_RETURN_IF_ERROR(AgreeOnFlags(options, model, transport));
  rank->WireThreads();
  // A rank that cannot read its files tells the others why.
  PORTOLAN_RETURN_IF_ERROR(
      AgreeOnStatus(transport, rank->WireForesight(), kStartTimeout));
  PORTOLAN_RETURN_IF_ERROR(
      AgreeOnStatus(transport, rank->WireExperts(), kStartTimeout));
  PORTOLAN_RETURN_IF_ERROR(rank->AgreeOnForesight());
  PORTOLAN_RETURN_IF_ERROR(
      TellNotices(transport, rank->notices_, kStartTimeout));
  if (mailbox == nullptr) mailbox = rank->MakeHistoryMailbox();
  if (mailbox != nullptr) rank->WireRecorder(*mailbox);
  PORTOLAN_RETURN_IF_ERROR(
      AgreeOnStatus(transport, rank->WireTrace(), kStartTimeout));
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
      owners_(ContiguousOwners(model.config, transport.world_size())),
      profile_(options.profile_file.empty() ? nullptr
                                            : std::make_unique<Profile>()) {
  if (observer != nullptr) observers_.Add(*observer);
}

RankRuntime::~RankRuntime() = default;

void RankRuntime::WireThreads() {
  const LocalPlace place = PlaceOnHost(transport_);
  allowed_cpus_ = AllowedCpus();
  ThreadPlan plan =
      PlanThreads(allowed_cpus_, options_.threads, place.rank, place.size);
  numa_nodes_ = MemoryNodes(plan, allowed_cpus_);
  pool_ = std::make_unique<ThreadPool>(plan.num_threads, std::move(plan.cpus));
  const CpuPath path = options_.activations == ActivationDtype::kF32
                           ? CpuPath::kScalar
                           : options_.cpu_path.value_or(BestCpuPath());
  kernels_ = std::make_unique<Kernels>(path, *pool_);
}

absl::Status RankRuntime::WireForesight() {
  PORTOLAN_RETURN_IF_ERROR(CheckPolicyName(options_.policy));
  const ModelConfig& config = model_.config;
  const HistoryShape history = HistoryShapeOf(options_, model_);
  PORTOLAN_RETURN_IF_ERROR(CheckHistoryFits(history));
  history_ = std::make_unique<History>(history);
  PORTOLAN_RETURN_IF_ERROR(LoadHistory(options_, *history_));
  std::unique_ptr<Predictor> predictor =
      MakePredictor(options_.policy, PredictorShapeOf(options_, config),
                    {.distance = options_.prefetch_distance}, *history_);
  if (predictor == nullptr) return absl::OkStatus();
  foresight_ = std::make_unique<Foresight>(
      std::move(predictor), config.num_moe_layers(), config.num_experts);
  return absl::OkStatus();
}

HistoryMailbox* RankRuntime::MakeHistoryMailbox() {
  if (options_.history_file.empty() || transport_.world_size() == 1) {
    return nullptr;
  }
  history_mailbox_ = std::make_unique<HistoryMailbox>(
      GatheredHistoryOf(history_->shape(), transport_.world_size()));
  return history_mailbox_.get();
}

void RankRuntime::WireRecorder(HistoryMailbox& mailbox) {
  recorder_ = std::make_unique<HistoryRecorder>(history_->record_shape(),
                                                *history_, mailbox);
  observers_.Add(*recorder_);
}

absl::Status RankRuntime::WireExperts() {
  PolicyShape shape = ShapeOfRank();
  expert_slot_bytes_ = shape.expert_bytes;
  const auto owned = static_cast<int64_t>(shape.owned.size());
  PORTOLAN_ASSIGN_OR_RETURN(
      const MemoryBudget budget,
      PlanExpertMemory(options_.expert_memory, owned, shape.expert_bytes));
  shape.num_slots = static_cast<int32_t>(budget.num_slots);
  experts_resident_ = budget.resident();
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<ChunkedSource> source,
                            OpenExpertSource(shape));
  std::unique_ptr<CachePolicy> policy =
      MakePolicy(options_.policy, shape, history_.get());
  if (!policy->notice().empty()) notices_.emplace_back(policy->notice());
  hint_merge_ = policy->hint_merge();
  const ExpertCache::Options cache{.slot_bytes = shape.expert_bytes,
                                   .loader_cpus = allowed_cpus_,
                                   .numa_nodes = numa_nodes_,
                                   .layer_names = model_.config.MoeLayers(),
                                   .profile = profile()};
  PORTOLAN_ASSIGN_OR_RETURN(
      cache_,
      ExpertCache::Create(cache, shape, std::move(policy), std::move(source)));
  return budget.resident() ? LoadResident(owned, shape.expert_bytes)
                           : absl::OkStatus();
}

// Ranks foretell for each other, so all of them do or none. With every expert
// of every rank resident there is nothing to foretell, only to learn.
absl::Status RankRuntime::AgreeOnForesight() {
  const bool wanted = !experts_resident_ || !options_.history_file.empty();
  PORTOLAN_ASSIGN_OR_RETURN(const bool any,
                            AnyRank(transport_, wanted, kStartTimeout));
  if (!any) foresight_.reset();
  if (foresight_ != nullptr) observers_.Add(*foresight_);
  return absl::OkStatus();
}

absl::Status RankRuntime::LoadResident(int64_t owned, int64_t expert_bytes) {
  Progress progress(absl::StrCat("Loading ", owned, " experts"),
                    transport_.rank() != Rank{0});
  return cache_->LoadAll([&](int64_t done, int64_t total) {
    progress.Update(done * expert_bytes, total * expert_bytes);
  });
}

absl::StatusOr<std::unique_ptr<ChunkedSource>> RankRuntime::OpenExpertSource(
    const PolicyShape& shape) {
  ExpertSourceOptions source{.model_dir = options_.model_dir,
                             .pack_dir = options_.pack_dir,
                             .host_memory = options_.experts_in_host_memory};
  if (!options_.expert_link.empty()) {
    PORTOLAN_ASSIGN_OR_RETURN(source.link, ParseLinkSpec(options_.expert_link));
  }
  PORTOLAN_ASSIGN_OR_RETURN(
      ChosenSource chosen,
      MakeExpertSource(
          source, PackIdentityOf(model_, options_.weights), shape.owned,
          [&, layers = model_.config.MoeLayers()](ExpertId id) {
            return model_.experts.ExpertExtentsOf(
                {layers[static_cast<size_t>(id.layer)], id.expert});
          }));
  notices_.insert(notices_.end(), chosen.notices.begin(), chosen.notices.end());
  return std::move(chosen.source);
}

absl::Status RankRuntime::WireTrace() {
  if (options_.trace_file.empty()) return absl::OkStatus();
  const ModelConfig& config = model_.config;
  TraceHeader header;
  header.num_layers = config.num_moe_layers();
  header.num_experts = config.num_experts;
  header.top_k = config.top_k;
  header.hidden = static_cast<int32_t>(config.hidden);
  header.lookahead = 2;
  header.num_ranks = transport_.world_size();
  header.expert_bytes =
      ExpertSlotBytes(model_.experts.shape(), options_.weights);
  header.expert_memory_bytes = cache_->budget_bytes();
  header.numerics_id = numerics_id();
  header.fingerprint = model_.fingerprint;
  if (!options_.expert_link.empty()) {
    PORTOLAN_ASSIGN_OR_RETURN(const LinkSpec link,
                              ParseLinkSpec(options_.expert_link));
    header.link_bytes_per_second = link.bytes_per_second;
    header.link_latency_s = absl::ToDoubleSeconds(link.latency);
  }
  header.model = options_.model_dir;
  header.policy = options_.policy;
  const int rank = ToIndex(transport_.rank());
  const std::string path =
      FileOfRank(options_.trace_file, rank, transport_.world_size());
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<TraceWriter> writer,
                            TraceWriter::Create(path, header));
  trace_ = std::make_unique<TraceRecorder>(
      std::move(writer), header, rank,
      [this] { return cache_->metrics().stall; },
      [this](const absl::Status& status) {
        TellNotice(transport_,
                   absl::StrCat("the trace ends here: ", status.message()));
      });
  observers_.Add(*trace_);
  return absl::OkStatus();
}

absl::Status RankRuntime::SaveProfile() const {
  if (profile_ == nullptr) return absl::OkStatus();
  if (const std::string text = profile_->Notice(); !text.empty()) {
    TellNotice(transport_, text);
  }
  const int rank = ToIndex(transport_.rank());
  return profile_->WriteTrace(
      FileOfRank(options_.profile_file, rank, transport_.world_size()), rank);
}

std::vector<PredictionMetrics> RankRuntime::predictions() const {
  if (foresight_ == nullptr) return {};
  return foresight_->predictor().metrics();
}

absl::Status RankRuntime::SaveHistory() {
  if (options_.history_file.empty()) return absl::OkStatus();
  if (history_mailbox_ != nullptr) {
    PORTOLAN_RETURN_IF_ERROR(GatherHistory(
        transport_, *history_mailbox_, absl::Seconds(options_.step_timeout_s)));
    recorder_->ApplyAll();
  }
  if (transport_.rank() != Rank{0}) return absl::OkStatus();
  return history_->Save(options_.history_file);
}

PolicyShape RankRuntime::ShapeOfRank() const {
  const ModelConfig& config = model_.config;
  PolicyShape shape;
  shape.num_layers = config.num_moe_layers();
  shape.num_experts = config.num_experts;
  shape.top_k = config.top_k;
  shape.expert_bytes =
      ExpertSlotBytes(model_.experts.shape(), options_.weights);
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    for (int32_t expert = 0; expert < config.num_experts; ++expert) {
      const Rank owner =
          owners_[static_cast<size_t>(layer)][static_cast<size_t>(expert)];
      if (owner == transport_.rank()) shape.owned.push_back({layer, expert});
    }
  }
  return shape;
}

uint64_t RankRuntime::numerics_id() const {
  return NumericsId(options_, model_, transport_.rank());
}

absl::Status RankRuntime::WireExchange() {
  const ModelConfig& config = model_.config;
  ExchangeOptions exchange = ExchangeOptionsOf(options_, config);
  exchange.numerics_id = numerics_id();
  exchange.model_fingerprint = model_.fingerprint;
  exchange.epoch = options_.epoch;
  exchange.pool = pool_.get();
  exchange.described = {
      .epoch = options_.epoch_text,
      .numerics = NumericsText(options_),
      .model = options_.model_dir,
      .hints = absl::StrCat(options_.policy, ", ", options_.prefetch_distance)};
  if (!experts_resident_) {
    PORTOLAN_ASSIGN_OR_RETURN(exchange.expert_load_time,
                              ExpertLoadTime(options_, expert_slot_bytes_));
  }
  exchange.step_timeout = absl::Seconds(options_.step_timeout_s);
  exchange.profile = profile();
  MoeLayer::Hints hints;
  if (foresight_ != nullptr) {
    hints = {.merge = hint_merge_,
             .distances = foresight_->distances(),
             .step_layers = foresight_->step_layers()};
    exchange.hint_distances = hints.distances;
    exchange.step_hint_layers = hints.step_layers;
  }
  PORTOLAN_ASSIGN_OR_RETURN(exchange.phase_hook,
                            ParseFault(options_.fault, transport_.rank()));
  PORTOLAN_ASSIGN_OR_RETURN(
      exchange_, TokenExchange::Create(transport_, exchange, owners_));
  ffn_ = std::make_unique<ExpertFfn>(model_.experts.shape(),
                                     options_.activations, *kernels_,
                                     int64_t{exchange_->round_tokens()} *
                                         config.top_k * transport_.world_size(),
                                     profile(), options_.weights);
  moe_ = std::make_unique<MoeLayer>(*exchange_, *cache_, *ffn_,
                                    config.num_moe_layers(), config.num_experts,
                                    std::move(hints));
  return absl::OkStatus();
}

absl::Status RankRuntime::WireEngine(TokenSink& sink) {
  const ModelConfig& config = model_.config;
  PORTOLAN_ASSIGN_OR_RETURN(const int32_t num_pages,
                            NumKvPages(options_, config));
  const KvCache::Options kv{
      .num_layers = config.num_layers,
      .page_bytes = KvLayoutOf(options_, config).PageBytes(),
      .num_pages = num_pages,
      .numa_nodes = numa_nodes_};
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
                                              .observer = observer(),
                                              .profile = profile()}));
  sampler_ = std::make_unique<Sampler>(static_cast<int32_t>(config.vocab_size));
  const Engine::Options engine{
      .batcher = {.max_sequences = options_.batch,
                  .tokens_per_step = options_.tokens_per_step,
                  .tokens_per_page = kPageTokens},
      .max_context = config.max_position,
      .share_prefixes = options_.share_prefixes};
  engine_ = std::make_unique<Engine>(engine, *forward_, *kv_, *sampler_, sink,
                                     observer(), profile());
  return absl::OkStatus();
}

}  // namespace portolan
