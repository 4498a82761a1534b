// The program of the ranks: generate, bench, and what is added to them.

#include <unistd.h>

#include <new>

#include "CLI/CLI.hpp"
#include "launcher/bench.h"
#include "launcher/console.h"
#ifdef PORTOLAN_GRPC
#include "launcher/coordinator.h"
#include "launcher/serve.h"
#endif
#include "launcher/generate.h"
#include "launcher/options.h"
#include "launcher/pack.h"
#include "launcher/plan.h"
#include "launcher/replay.h"
#include "launcher/usage.h"
#include "launcher/version.h"
#ifdef PORTOLAN_GRPC
#include "launcher/bench_serve.h"
#endif

int main(int argc, char** argv) {
  CLI::App app(
      "Portolan serves mixture-of-experts language models whose experts do not "
      "fit in fast memory, on one machine or on many.",
      "portolan");
  app.set_config("--config", "", "Read flags from this TOML file");
  app.set_version_flag("--version", portolan::VersionText());
  app.require_subcommand(1);
  app.fallthrough();
  app.allow_config_extras(CLI::config_extras_mode::error);

  std::set_new_handler([] {
    // Nothing that allocates. Peers notice the death by themselves.
    constexpr char kText[] =
        "error: out of memory; `portolan plan` says what a job takes\n";
    (void)!write(STDERR_FILENO, kText, sizeof(kText) - 1);
    _exit(portolan::kExitFailed);
  });

  int exit_code = portolan::kExitDone;
  portolan::AddGenerateCommand(app, exit_code);
  portolan::AddPackCommand(app, exit_code);
  portolan::AddPlanCommand(app, exit_code);
  portolan::AddReplayCommand(app, exit_code);
  portolan::AddBenchCommand(app, exit_code);
#ifdef PORTOLAN_GRPC
  portolan::AddCoordinatorCommand(app, exit_code);
  portolan::AddBenchServeCommand(*app.get_subcommand("bench"), exit_code);
  portolan::AddServeCommand(app, exit_code);
  portolan::AddWorkerCommand(app, exit_code);
#endif

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) portolan::LetFirstRankSpeak();
    return portolan::ReportUsage(app, error);
  }
  return exit_code;
}
