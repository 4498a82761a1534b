#include "launcher/coordinator.h"

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <ctime>
#include <future>
#include <memory>

#include "CLI/CLI.hpp"
#include "absl/time/clock.h"
#include "launcher/console.h"
#include "launcher/coordinator_options.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

struct CoordinatorCommand {
  CoordinatorOptions options;
  absl::Duration grace = absl::Seconds(30);
};

sigset_t StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

// Returns false if `grace` passed, or a second signal came, before all ended.
bool DrainAll(Coordinator& coordinator, const sigset_t& signals,
              absl::Duration grace) {
  std::fprintf(stderr, "draining; a second signal ends at once\n");
  const absl::Time deadline = absl::Now() + grace;
  coordinator.Drain();
  while (!coordinator.WaitDrained(absl::Milliseconds(50))) {
    const timespec now = {};
    if (sigtimedwait(&signals, nullptr, &now) > 0) return false;
    if (absl::Now() >= deadline) return false;
  }
  return true;
}

absl::StatusOr<int> RunCoordinator(CoordinatorCommand command) {
  // Before any thread starts, for threads inherit it.
  const sigset_t signals = StopSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::promise<absl::Status> broken;
  std::future<absl::Status> why_broken = broken.get_future();
  command.options.on_broken = [&broken](const absl::Status& why) {
    broken.set_value(why);
    kill(getpid(), SIGTERM);
  };
  PORTOLAN_ASSIGN_OR_RETURN(const std::unique_ptr<Coordinator> coordinator,
                            Coordinator::Start(command.options));
  std::fprintf(stderr, "coordinator listens on %s\n",
               coordinator->address().c_str());
  if (!coordinator->http_address().empty()) {
    std::fprintf(stderr, "metrics on http://%s/metrics\n",
                 coordinator->http_address().c_str());
  }
  int signal = 0;
  sigwait(&signals, &signal);
  if (why_broken.wait_for(std::chrono::seconds(0)) ==
      std::future_status::ready) {
    return BrokenDatabase(why_broken.get());
  }
  if (DrainAll(*coordinator, signals, command.grace)) return kExitDone;
  std::fprintf(stderr,
               "ended with requests under way; they go on after a restart\n");
  return kExitRestart;
}

}  // namespace

void AddCoordinatorCommand(CLI::App& app, int& exit_code) {
  auto command = std::make_shared<CoordinatorCommand>();
  CLI::App* sub = app.add_subcommand(
      "coordinator", "Take requests over gRPC for the jobs that attach");
  AddCoordinatorOptions(*sub, command->options);
  AddGraceOption(*sub, command->grace);
  sub->get_option("--data-dir")->required();
  sub->callback([command, &exit_code] {
    const absl::StatusOr<int> code = RunCoordinator(*command);
    exit_code = code.ok() ? *code : Report(code.status());
  });
}

}  // namespace portolan
