#include "launcher/usage.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
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
  // CLI11 names the entry alone.
  constexpr std::string_view kStray = "INI was not able to parse ";
  if (what.starts_with(kStray)) {
    const std::string entry = what.substr(kStray.size());
    what =
        absl::StrCat("--config: there is no flag for the entry `", entry, "`");
    if (entry.find('.') == std::string::npos) {
      absl::StrAppend(&what,
                      "; flags of a command stand under its name, such as "
                      "[generate] or [bench.model]");
    }
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
