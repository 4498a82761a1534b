// The program of those who use a service from afar; needs neither MPI nor a
// model.

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <thread>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "clients/cc/interruption.h"
#include "launcher/client_commands.h"
#include "launcher/console.h"
#include "launcher/usage.h"
#include "launcher/version_info.h"

namespace portolan {
namespace {

// Turns the first Ctrl-C into an interruption and the second one into an end
// at once. Call before any other thread starts: they inherit the mask.
void TakeSignals(Interruption& interruption) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([signals, &interruption] {
    int signal = 0;
    sigwait(&signals, &signal);
    interruption.Trigger();
    sigwait(&signals, &signal);
    _exit(kExitFailed);
  }).detach();
}

int Run(int argc, char** argv) {
  // The waiting thread uses it until the process ends.
  static Interruption& interruption = *new Interruption;
  TakeSignals(interruption);

  CLI::App app("Sends requests to a Portolan service.", "portolan-client");
  app.set_config("--config", "", "Read flags from this TOML file");
  app.set_version_flag("--version",
                       absl::StrCat("portolan-client ", kVersion, " (", kCommit,
                                    ")\ngrpc: ", kGrpcVersion));
  app.require_subcommand(1);
  app.fallthrough();
  app.allow_config_extras(CLI::config_extras_mode::error);
  int exit_code = kExitDone;
  AddGenerateRequestCommand(app, interruption, exit_code);
  AddSubmitCommand(app, interruption, exit_code);
  AddWatchCommand(app, interruption, exit_code);
  AddGetCommand(app, interruption, exit_code);
  AddListCommand(app, interruption, exit_code);
  AddCancelCommand(app, interruption, exit_code);
  AddHealthCommand(app, interruption, exit_code);
  AddStatsCommand(app, interruption, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return ReportUsage(app, error);
  }
  return exit_code;
}

}  // namespace
}  // namespace portolan

int main(int argc, char** argv) { return portolan::Run(argc, argv); }
