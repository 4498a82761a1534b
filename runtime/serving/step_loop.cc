#include "runtime/serving/step_loop.h"

#include <span>

#include "runtime/base/status_macros.h"

namespace portolan {

StepLoop::StepLoop(TokenExchange& exchange, Engine& engine, RequestFeed& feed,
                   ResultCollector* collector, ForwardObserver* observer,
                   Profile* profile)
    : exchange_(exchange),
      engine_(engine),
      feed_(feed),
      collector_(collector),
      observer_(observer),
      profile_(profile) {}

absl::Status StepLoop::Run() {
  absl::Status status = RunSteps();
  // The others may be waiting for this rank: tell them why it stops.
  if (!status.ok()) exchange_.Abort(status);
  return status;
}

absl::Status StepLoop::RunSteps() {
  while (true) {
    PORTOLAN_ASSIGN_OR_RETURN(const Agreement ranks, Step());
    if (ranks.any_work) continue;
    if (ranks.all_closed && !ranks.any_output) return absl::OkStatus();
    PORTOLAN_RETURN_IF_ERROR(feed_.WaitForWork());
  }
}

absl::StatusOr<StepLoop::Agreement> StepLoop::Step() {
  const ProfileScope zone(profile_, Zone::kStep);
  PORTOLAN_RETURN_IF_ERROR(feed_.Poll(engine_));
  PORTOLAN_ASSIGN_OR_RETURN(Agreement ranks, BeginStep());
  if (ranks.any_closed) feed_.Close();
  if (ranks.any_output && collector_ != nullptr) {
    PORTOLAN_RETURN_IF_ERROR(collector_->Collect());
    ranks.any_output = false;
  }
  if (ranks.any_work) {
    PORTOLAN_RETURN_IF_ERROR(engine_.RunStep(ranks.num_tokens));
    ++num_steps_;
  }
  return ranks;
}

absl::StatusOr<StepLoop::Agreement> StepLoop::BeginStep() {
  StepRecord mine;
  mine.rows_planned = engine_.PlanStep();
  mine.has_work = mine.rows_planned > 0;
  mine.drain = feed_.closed();
  mine.has_output =
      collector_ == nullptr ? feed_.has_output() : collector_->has_output();
  std::span<const Fp16> hints;
  if (observer_ != nullptr) hints = observer_->step_hints();
  PORTOLAN_ASSIGN_OR_RETURN(const std::span<const StepRecord> records,
                            exchange_.BeginStep(mine, hints));
  Agreement ranks;
  for (const StepRecord& record : records) {
    ranks.num_tokens += record.rows_planned;
    ranks.any_work |= record.has_work;
    ranks.any_output |= record.has_output;
    ranks.any_closed |= record.drain;
    ranks.all_closed &= record.drain;
  }
  return ranks;
}

}  // namespace portolan
