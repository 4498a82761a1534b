#pragma once

#include "CLI/App.hpp"

namespace portolan {

// `portolan coordinator`: takes requests over gRPC and gives them to the ranks
// that attach, until SIGTERM or SIGINT.
void AddCoordinatorCommand(CLI::App& app, int& exit_code);

}  // namespace portolan
