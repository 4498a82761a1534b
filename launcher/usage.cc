#include "launcher/usage.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "launcher/console.h"

namespace portolan {

int ReportUsage(const CLI::App& app, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) return app.exit(error);
  std::string what = error.what();
  std::replace(what.begin(), what.end(), '\n', ' ');
  const std::vector<std::string> strays = app.remaining();
  if (app.get_subcommands().empty() && !strays.empty()) {
    what = "there is no command " + strays.front();
  }
  std::string command = app.get_name();
  for (const CLI::App* at = &app; !at->get_subcommands().empty();) {
    at = at->get_subcommands().front();
    command += " " + at->get_name();
  }
  std::fprintf(stderr, "error: %s; see %s --help\n", what.c_str(),
               command.c_str());
  return kExitUsage;
}

}  // namespace portolan
