#include "launcher/job.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include "comm/local_world.h"
#include "comm/mpi_session.h"
#include "launcher/console.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/checkpoint/fingerprint.h"
#include "runtime/serving/collectives.h"

namespace portolan {
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
