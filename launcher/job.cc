#include "launcher/job.h"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "comm/local_world.h"
#include "comm/mpi_session.h"
#include "experts/source_factory.h"
#include "launcher/console.h"
#include "launcher/memory_plan.h"
#include "launcher/notices.h"
#include "launcher/wiring.h"
#include "runtime/base/memory_available.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/units.h"
#include "runtime/model/checkpoint/fingerprint.h"
#include "runtime/model/checkpoint/unused_tensors.h"
#include "runtime/serving/collectives.h"

namespace portolan {
namespace {

// Tells of a pack that is asked for and missing or of no use.
absl::Status CheckPack(const JobOptions& options, const Model& model) {
  std::vector<std::string> notices;  // wiring will tell them
  return OpenPack(
             {.model_dir = options.model_dir, .pack_dir = options.pack_dir},
             PackIdentityOf(model, options.weights), notices)
      .status();
}

// What OpenModel() leaves out.
absl::Status LoadModel(const JobOptions& options, bool silent, Model& model) {
  if (!silent) TellNotice(model);
  if (options.needs_tokenizer) {
    PORTOLAN_ASSIGN_OR_RETURN(model.tokenizer,
                              Tokenizer::Load(options.model_dir));
  }
  PORTOLAN_ASSIGN_OR_RETURN(model.fingerprint,
                            ModelFingerprint(model.config, *model.checkpoint));
  PORTOLAN_RETURN_IF_ERROR(CheckPack(options, model));
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
          },
          options.dense_weights));
  return absl::OkStatus();
}

// Refuses, before the wait for the weights, ranks that do not fit together into
// the memory of their host: these of `world_size`. Where the budget is the
// user's word, `tells` says on stderr that it is more than there is.
absl::Status CheckMemory(const JobOptions& options, const Model& model,
                         std::span<const int> ranks, int world_size,
                         bool processes, bool tells) {
  std::vector<RankMemory> memory;
  for (const int rank : ranks) {
    PORTOLAN_ASSIGN_OR_RETURN(memory.emplace_back(),
                              PlanRankMemory(options, model, rank, world_size));
  }
  const int64_t available = options.memory_available > 0
                                ? options.memory_available
                                : AvailableMemory();
  PORTOLAN_RETURN_IF_ERROR(CheckFits(options, memory, processes, available));
  const int64_t wanted = BytesTogether(memory, processes);
  if (tells && wanted > available) {
    std::fprintf(stderr,
                 "notice: this host's ranks want %s, %s are available; "
                 "--expert-memory %s is taken at its word\n",
                 FormatBytes(static_cast<uint64_t>(wanted)).c_str(),
                 FormatBytes(static_cast<uint64_t>(available)).c_str(),
                 options.expert_memory.c_str());
  }
  return absl::OkStatus();
}

std::vector<int> RanksOfThisHost(const Transport& transport) {
  std::vector<int> ranks;
  for (int rank = 0; rank < transport.world_size(); ++rank) {
    if (transport.host(Rank{rank}) == transport.host(transport.rank())) {
      ranks.push_back(rank);
    }
  }
  return ranks;
}

absl::Status RunProcess(const WorldOptions& options, RankBody body) {
  MpiSessionOptions mpi;
  PORTOLAN_ASSIGN_OR_RETURN(mpi.transport,
                            ParseTransportKind(options.transport));
  mpi.start_timeout = absl::Seconds(options.start_timeout_s);
  mpi.launched_rank = options.launched_rank;
  mpi.silence = absl::Seconds(options.liveness_timeout_s);
  if (options.drains) mpi.end_after_termination = absl::InfiniteDuration();
  PORTOLAN_ASSIGN_OR_RETURN(const std::unique_ptr<MpiSession> session,
                            MpiSession::Create(nullptr, nullptr, mpi));
  absl::Status status = body(session->transport());
  status.Update(Print(""));
  // Finish() does not come back from an error, so it is reported here.
  ReportOnce(session->transport(), status);
  session->Finish(status, kExitFailed);
  return status;
}

// Every process reads the model for itself; one that cannot tells the others.
absl::Status RunJobProcess(const JobOptions& options, JobBody body) {
  return RunProcess(options, [&](Transport& transport) -> absl::Status {
    absl::StatusOr<Model> model = OpenModel(options.model_dir);
    absl::Status status = model.status();
    if (status.ok()) {
      const std::vector<int> ranks = RanksOfThisHost(transport);
      status = CheckMemory(options, *model, ranks, transport.world_size(),
                           /*processes=*/true,
                           Rank{ranks.front()} == transport.rank());
    }
    // Nobody takes memory before all have looked how much there is.
    PORTOLAN_RETURN_IF_ERROR(AgreeOnStatus(transport, status, kStartTimeout));
    status = LoadModel(options, /*silent=*/transport.rank() != Rank{0}, *model);
    PORTOLAN_RETURN_IF_ERROR(AgreeOnStatus(transport, status, kStartTimeout));
    return body(*model,
                [&](RankBody rank_body) { return rank_body(transport); });
  });
}

}  // namespace

absl::StatusOr<Model> OpenModel(const std::string& model_dir) {
  PORTOLAN_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(model_dir));
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint,
                            Checkpoint::Open(model_dir));
  PORTOLAN_ASSIGN_OR_RETURN(ExpertTensors experts,
                            ExpertTensors::Find(config, *checkpoint));
  PORTOLAN_ASSIGN_OR_RETURN(std::string notice,
                            CheckUnusedTensors(config, *checkpoint, experts));
  return Model{.config = std::move(config),
               .checkpoint = std::move(checkpoint),
               .experts = std::move(experts),
               .weights = {},
               .tokenizer = nullptr,
               .fingerprint = 0,
               .notice = std::move(notice)};
}

void TellNotice(const Model& model) {
  if (model.notice.empty()) return;
  std::fprintf(stderr, "notice: %s\n", model.notice.c_str());
}

absl::Status RunWorldOnly(const WorldOptions& options, RankBody body) {
  PORTOLAN_RETURN_IF_ERROR(OncePerHost(options.Validate()));
  if (options.is_process()) return RunProcess(options, body);
  return RunLocalWorld(std::max(1, options.ranks), body);
}

absl::Status RunJob(const JobOptions& options, JobBody body) {
  PORTOLAN_RETURN_IF_ERROR(OncePerHost(options.Validate()));
  if (options.is_process()) return RunJobProcess(options, body);
  const int world_size = std::max(1, options.ranks);
  PORTOLAN_ASSIGN_OR_RETURN(Model model, OpenModel(options.model_dir));
  std::vector<int> ranks(static_cast<size_t>(world_size));
  std::iota(ranks.begin(), ranks.end(), 0);
  PORTOLAN_RETURN_IF_ERROR(CheckMemory(options, model, ranks, world_size,
                                       /*processes=*/false,
                                       /*tells=*/true));
  PORTOLAN_RETURN_IF_ERROR(LoadModel(options, /*silent=*/false, model));
  return body(model, [&](RankBody rank_body) {
    return RunLocalWorld(world_size, rank_body);
  });
}

}  // namespace portolan
