#include "launcher/service.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "comm/termination.h"
#include "launcher/requests.h"
#include "launcher/wiring.h"
#include "runtime/agent/history_link.h"
#include "runtime/agent/rank_agent.h"
#include "runtime/agent/wire.h"
#include "runtime/base/status_macros.h"
#include "runtime/kernels/kv_layout.h"
#include "runtime/serving/step_loop.h"

namespace portolan {
namespace {

// What a request that does not say may generate.
constexpr int64_t kDefaultMaxTokens = 16;
constexpr absl::Duration kGoodbye = absl::Seconds(2);
// How long a rank waits for the shared history before it begins without.
constexpr absl::Duration kHistoryWait = absl::Seconds(2);

uint64_t RandomNumber() {
  std::random_device device;
  return (uint64_t{device()} << 32) ^ device();
}

// The engine is wired before the agent, which needs to know its memory.
class LateSink final : public TokenSink {
 public:
  void Set(TokenSink& sink) { sink_ = &sink; }
  bool OnToken(int64_t id, const GeneratedToken& token) override {
    return sink_->OnToken(id, token);
  }
  void OnFinish(int64_t id, const SequenceEnd& end) override {
    sink_->OnFinish(id, end);
  }

 private:
  TokenSink* sink_ = nullptr;
};

// While it lives, the thread (and what it starts) may run where it could before
// the rank's wiring bound it to a CPU of its own.
class Unbound {
 public:
  explicit Unbound(const cpu_set_t& all) {
    sched_getaffinity(0, sizeof(bound_), &bound_);
    sched_setaffinity(0, sizeof(all), &all);
  }
  ~Unbound() { sched_setaffinity(0, sizeof(bound_), &bound_); }
  Unbound(const Unbound&) = delete;
  Unbound& operator=(const Unbound&) = delete;

 private:
  cpu_set_t bound_;
};

// More than it decodes at a time, so that a slot that comes free is filled in
// the next step already.
uint32_t SequencesInHand(int32_t batch) {
  return static_cast<uint32_t>(batch + std::max(1, batch / 4));
}

std::string FingerprintOf(const Model& model) {
  return absl::StrCat(absl::Hex(model.fingerprint, absl::kZeroPad16));
}

AgentProtocol::Options Registration(const ServiceOptions& options,
                                    const Model& model, RankRuntime& rank,
                                    const Transport& transport) {
  AgentProtocol::Options registration;
  registration.job = options.job_name;
  registration.rank = static_cast<uint32_t>(ToIndex(transport.rank()));
  registration.world_size = static_cast<uint32_t>(transport.world_size());
  registration.incarnation = RandomNumber();
  registration.host = std::string(transport.host(transport.rank()));
  v1::ModelIdentity& identity = registration.model;
  identity.set_name(options.model_name);
  identity.set_fingerprint(FingerprintOf(model));
  identity.set_numerics_id(
      absl::StrCat(absl::Hex(rank.numerics_id(), absl::kZeroPad16)));
  identity.set_max_context(
      static_cast<uint32_t>(rank.engine().max_positions()));
  identity.set_vocab_size(static_cast<uint32_t>(model.config.vocab_size));
  registration.capacity.set_max_sequences(SequencesInHand(options.job.batch));
  registration.capacity.set_kv_tokens(
      static_cast<uint64_t>(rank.kv().num_pages() * kPageTokens));
  registration.capacity.set_kv_page_tokens(kPageTokens);
  registration.capacity.set_kv_dtype(
      options.job.activations == ActivationDtype::kF32 ? "float32"
                                                       : "bfloat16");
  registration.defaults = ToProto(
      SettleRequest({}, options.wishes, model.config, kDefaultMaxTokens));
  return registration;
}

// What the expert cache and the exchange add to the figures of a heartbeat.
class Meter {
 public:
  Meter(const RankRuntime& rank, const Transport& transport)
      : rank_(rank), transport_(transport) {}

  void Measure(v1::RankMetrics& metrics, float& coldness) {
    const ExpertMetrics experts = rank_.expert_metrics();
    metrics.set_steps(static_cast<uint64_t>(experts.steps));
    metrics.set_expert_hits(static_cast<uint64_t>(experts.hits));
    metrics.set_expert_late(static_cast<uint64_t>(experts.late));
    metrics.set_expert_misses(static_cast<uint64_t>(experts.misses));
    metrics.set_expert_resident_bytes(
        static_cast<uint64_t>(rank_.expert_counters().resident_bytes));
    metrics.set_expert_capacity_bytes(
        static_cast<uint64_t>(rank_.expert_memory_bytes()));
    metrics.set_expert_demand_bytes(
        static_cast<uint64_t>(experts.demand_bytes));
    metrics.set_expert_prefetch_used_bytes(
        static_cast<uint64_t>(experts.prefetch_used_bytes));
    metrics.set_expert_prefetch_wasted_bytes(
        static_cast<uint64_t>(experts.prefetch_wasted_bytes));
    metrics.set_expert_prefetches_used(
        static_cast<uint64_t>(experts.prefetches_used));
    metrics.set_expert_prefetches_late(
        static_cast<uint64_t>(experts.prefetches_late));
    metrics.set_expert_prefetches_wasted(
        static_cast<uint64_t>(experts.prefetches_wasted));
    if (const Histogram* scores = rank_.match_scores(); scores != nullptr) {
      *metrics.mutable_expert_map_match_score() = ToProto(*scores);
    }
    metrics.set_expert_stall_s(absl::ToDoubleSeconds(experts.stall));
    const TransportStats traffic = transport_.stats();
    metrics.set_dispatch_bytes_out(static_cast<uint64_t>(traffic.bytes_sent));
    metrics.set_dispatch_bytes_in(
        static_cast<uint64_t>(traffic.bytes_received));
    for (const int64_t selections : rank_.moe().selections_by_layer()) {
      metrics.add_selections_by_layer(static_cast<uint64_t>(selections));
    }
    // The same on all ranks, so one of them tells.
    if (ToIndex(transport_.rank()) == 0) {
      *metrics.mutable_step_tokens() = ToProto(rank_.engine().step_tokens());
    }
    *metrics.mutable_alltoall_s() = ToProto(rank_.moe().exchange_times());
    coldness = Coldness(experts);
  }

 private:
  // Share of the experts needed lately that were not there.
  float Coldness(const ExpertMetrics& now) {
    const int64_t accesses = now.accesses() - before_.accesses();
    if (accesses > 0) {
      coldness_ = 1 - static_cast<float>(now.hits - before_.hits) /
                          static_cast<float>(accesses);
      before_ = now;
    }
    return coldness_;
  }

  const RankRuntime& rank_;
  const Transport& transport_;
  ExpertMetrics before_;
  float coldness_ = 0;
};

// Shares what this rank learns of the gates with all ranks of the model.
std::unique_ptr<HistoryLink> FollowHistory(const CoordinatorAddress& address,
                                           const Model& model,
                                           HistoryMailbox& mailbox) {
  return std::make_unique<HistoryLink>(
      address, HistoryLink::Options{.fingerprint = FingerprintOf(model)},
      mailbox);
}

void NoticeOf(const Transport& transport, const std::string& text) {
  std::fprintf(stderr, "notice: rank %d: %s\n", ToIndex(transport.rank()),
               text.c_str());
}

}  // namespace

absl::Status ServeRank(const ServiceOptions& options,
                       const CoordinatorAddress& address, const Model& model,
                       Transport& transport, const ServiceHooks& hooks,
                       std::atomic<bool>& interrupted) {
  cpu_set_t all_cpus;
  sched_getaffinity(0, sizeof(all_cpus), &all_cpus);
  LateSink sink;
  HistoryMailbox mailbox({});
  const std::unique_ptr<HistoryLink> history =
      FollowHistory(address, model, mailbox);
  PORTOLAN_ASSIGN_OR_RETURN(const std::unique_ptr<RankRuntime> rank,
                            RankRuntime::Create(options.job, model, transport,
                                                sink, nullptr, &mailbox));
  mailbox.WaitUntilSynced(kHistoryWait);
  rank->ApplySharedHistory();
  NoticeOf(transport, absl::StrCat("begins with ", mailbox.counts().received,
                                   " expert maps of other ranks"));
  Meter meter(*rank, transport);
  RankAgent::Options agent_options;
  agent_options.protocol = Registration(options, model, *rank, transport);
  agent_options.model = TermsOf(model);
  agent_options.max_context = model.config.max_position;
  agent_options.kv_tokens = rank->kv().num_pages() * kPageTokens;
  agent_options.grace = options.grace;
  agent_options.drains_with_coordinator = hooks.drains_with_coordinator;
  agent_options.terminations = TerminationCount;
  agent_options.on_drain = hooks.on_drain;
  agent_options.measure = [&meter](v1::RankMetrics& metrics, float& coldness) {
    meter.Measure(metrics, coldness);
  };
  const uint64_t seed = agent_options.protocol.incarnation;
  RankAgent agent(std::move(agent_options), transport);
  sink.Set(agent);
  std::optional<ControlStream> stream;
  {
    const Unbound unbound(all_cpus);
    stream.emplace(address, agent, seed,
                   [&](const std::string& text) { NoticeOf(transport, text); });
  }
  StepLoop loop(rank->exchange(), rank->engine(), agent, nullptr,
                rank->observer(), rank->profile());
  const absl::Status status = loop.Run();
  if (agent.interrupted()) interrupted = true;
  agent.SayGoodbye(status);
  stream->Finish(kGoodbye);
  PORTOLAN_RETURN_IF_ERROR(status);
  PORTOLAN_RETURN_IF_ERROR(rank->SaveHistory());
  return rank->SaveProfile();
}

}  // namespace portolan
