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

absl::Status RunProcess(const WorldOptions& options, RankBody body) {
  MpiSessionOptions mpi;
  PORTOLAN_ASSIGN_OR_RETURN(mpi.transport,
                            ParseTransportKind(options.transport));
  mpi.silence = absl::Seconds(options.liveness_timeout_s);
  if (options.drains) mpi.end_after_termination = absl::InfiniteDuration();
  PORTOLAN_ASSIGN_OR_RETURN(const std::unique_ptr<MpiSession> session,
                            MpiSession::Create(nullptr, nullptr, mpi));
  const absl::Status status = body(session->transport());
  // Finish() does not come back from an error, so it is reported here.
  Report(status);
  session->Finish(status, kExitFailed);
  return status;
}

// Every process reads the model for itself; one that cannot tells the others.
absl::Status RunJobProcess(const JobOptions& options, JobBody body) {
  return RunProcess(options, [&](Transport& transport) -> absl::Status {
    const absl::StatusOr<Model> model =
        LoadModel(options, /*silent=*/transport.rank() != Rank{0});
    PORTOLAN_RETURN_IF_ERROR(
        AgreeOnStatus(transport, model.status(), kStartTimeout));
    return body(*model,
                [&](RankBody rank_body) { return rank_body(transport); });
  });
}

}  // namespace

absl::Status RunWorldOnly(const WorldOptions& options, RankBody body) {
  PORTOLAN_RETURN_IF_ERROR(options.Validate());
  if (options.is_process()) return RunProcess(options, body);
  return RunLocalWorld(std::max(1, options.ranks), body);
}

absl::Status RunJob(const JobOptions& options, JobBody body) {
  PORTOLAN_RETURN_IF_ERROR(options.Validate());
  if (options.is_process()) return RunJobProcess(options, body);
  PORTOLAN_ASSIGN_OR_RETURN(const Model model,
                            LoadModel(options, /*silent=*/false));
  return body(model, [&](RankBody rank_body) {
    return RunLocalWorld(std::max(1, options.ranks), rank_body);
  });
}

}  // namespace portolan
