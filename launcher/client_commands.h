#pragma once

#include "CLI/App.hpp"
#include "clients/cc/interruption.h"

namespace portolan {

// What `portolan-client` can do: one subcommand each, which sets `exit_code`
// when it has run. `interruption` is triggered by Ctrl-C.
void AddGenerateRequestCommand(CLI::App& app, Interruption& interruption,
                               int& exit_code);
void AddSubmitCommand(CLI::App& app, Interruption& interruption,
                      int& exit_code);
void AddWatchCommand(CLI::App& app, Interruption& interruption, int& exit_code);
void AddGetCommand(CLI::App& app, Interruption& interruption, int& exit_code);
void AddListCommand(CLI::App& app, Interruption& interruption, int& exit_code);
void AddCancelCommand(CLI::App& app, Interruption& interruption,
                      int& exit_code);
void AddHealthCommand(CLI::App& app, Interruption& interruption,
                      int& exit_code);
void AddStatsCommand(CLI::App& app, Interruption& interruption, int& exit_code);

}  // namespace portolan
